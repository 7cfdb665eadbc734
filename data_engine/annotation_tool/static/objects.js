// Masks: committed, changed, deleted, accepted.
import { colorOf, holds } from "./layers.js";
import { area } from "./rle.js";

export const WithObjects = (Base) =>
  class extends Base {
    async commit() {
      while (this.asking) await this.asking;
      const work = this.piece.work(this.session.model?.checkpoint ?? "");
      if (!work) return this.say(this.piece.empty ? "There is nothing to commit yet." : "The mask is empty.", "note");
      const before = this.piece.editing;
      const mask = before?.mask ?? crypto.randomUUID();
      const number = before?.number ?? 1 + Math.max(-1, ...this.masks.map((other) => other.number));
      this.send({ kind: "put", mask, ...work, ...this.clock.take() });
      const made = this.drawable({ mask, number, ...work, name: before?.name ?? "", proposed: before?.proposed ?? before?.origin === "proposed" });
      this.masks = [...this.masks.filter((other) => other.mask !== mask), made].sort((a, b) => a.number - b.number);
      this.undoable.push({ kind: "commit", mask });
      this.piece.clear();
      this.layers.redraw(this.masks);
      return this.stepped();
    }

    send(message) {
      this.outbox.put({ task: this.task.id, ...message });
    }

    drop() {
      if (this.piece.empty && !this.piece.editing) return;
      this.piece.clear();
      this.clock.start();
      this.layers.redraw(this.masks);
      this.stepped();
    }

    undo() {
      this.version = (this.version ?? 0) + 1;
      if (this.piece.undo()) return this.stepped();
      if (!this.piece.empty) return this.drop();
      const last = this.undoable.pop();
      if (!last) return this.say("There is nothing to undo.", "note");
      if (last.kind === "commit") {
        const mask = this.masks.find((other) => other.mask === last.mask);
        return mask ? this.edit(mask) : this.undo();
      }
      const { rle, origin, predicted_iou, prompts, mask, number, proposed } = last.was;
      const again = origin === "proposed" ? "accepted" : origin;
      this.send({ kind: "put", mask, rle, origin: again, predicted_iou, prompts, ...this.clock.take() });
      this.masks.push(this.drawable({ ...last.was, mask, number, origin: again, proposed }));
      this.layers.redraw(this.masks);
      return this.stepped();
    }

    edit(mask) {
      if (!mask) return this.say("No mask there.", "note");
      if (!this.piece.empty) return this.say("Commit the object at hand first (F), or drop it (Esc).", "note");
      this.piece.edit(mask);
      this.clock.start();
      this.layers.redraw(this.masks.filter((other) => other !== mask));
      return this.stepped();
    }

    delete(mask) {
      this.send({ kind: "delete", mask: mask.mask });
      this.masks = this.masks.filter((other) => other !== mask);
      this.undoable.push({ kind: "delete", was: mask });
      this.marked = null;
      this.layers.redraw(this.masks);
      this.stepped();
    }

    get here() {
      if (this.marked && this.masks.includes(this.marked)) return this.marked;
      const under = this.masks.filter((mask) => mask.crop && holds(mask.crop, this.pointer.x, this.pointer.y));
      return under.sort((a, b) => area(a.crop.bits) - area(b.crop.bits))[0] ?? null;
    }

    get proposals() {
      return this.masks.filter((mask) => mask.origin === "proposed");
    }

    // The next proposed mask, from the last one on the first again.
    after(mask) {
      const others = this.proposals.filter((other) => other !== mask);
      return others.find((other) => other.number > (mask?.number ?? -1)) ?? others[0] ?? null;
    }

    // The proposed mask that A and R are about; none: they show the next one first.
    proposal() {
      const mask = this.here;
      return mask?.origin === "proposed" ? mask : null;
    }

    accept(mask) {
      const { rle, predicted_iou } = mask;
      this.send({ kind: "put", mask: mask.mask, rle, predicted_iou, origin: "accepted", ...this.clock.take() });
      Object.assign(mask, { origin: "accepted", proposed: true, color: colorOf(mask.number, "accepted") });
      this.marked = null;
    }
  };
