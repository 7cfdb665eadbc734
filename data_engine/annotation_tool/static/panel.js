// What is shown beside the image, and in words.
import { ApiError, api } from "./api.js";
import { Layers, cropped } from "./layers.js";
import { SIZES } from "./mask_editor.js";
import { $ } from "./dom.js";

const CURRENT = [255, 214, 10];

export const WithPanel = (Base) =>
  class extends Base {
    stepped() {
      this.keepDraft();
      this.refresh();
    }

    refresh() {
      if (!this.task) return;
      this.paintCurrent();
      this.listMasks();
      this.describe();
    }

    paintCurrent() {
      const { bits, height, width } = this.piece;
      this.current.only(bits && cropped(bits, height, width), CURRENT);
      this.refreshScene();
    }

    refreshScene() {
      if (!this.task || !this.piece) return;
      const { points, box } = this.piece.state;
      this.view.scene = {
        masks: this.layers,
        marked: this.markedCanvas,
        current: this.piece.bits ? this.current : null,
        hover: this.hovering ? this.hover : null,
        points: this.moving ? points.map((point) => (point === this.moving.from ? this.moving.to : point)) : points,
        box: this.growing ?? box,
        near: this.near,
        pointer: this.pointer,
        byKeys: this.byKeys,
        tool: this.tool,
        brush: this.brush,
        ...this.looks,
      };
      this.view.draw();
    }

    look(change) {
      Object.assign(this.looks, change);
      localStorage.setItem("sam-annotate looks", JSON.stringify({ opacity: this.looks.opacity, style: this.looks.style, preview: this.looks.preview }));
      $("opacity").value = 100 * this.looks.opacity;
      this.refreshScene();
    }

    mark(mask) {
      this.marked = mask ?? null;
      this.markedCanvas = null;
      if (mask?.crop) {
        const layer = new Layers(this.task.height, this.task.width);
        layer.thickness *= 3; // those of proposed masks are nearly white, too
        layer.only(mask.crop, [255, 255, 255]);
        this.markedCanvas = layer.outlines;
      }
      for (const row of $("masks").children) {
        if (row.classList.toggle("marked", row.dataset.mask === this.marked?.mask)) row.scrollIntoView({ block: "nearest" });
      }
      this.refreshScene();
    }

    describe(text) {
      const { piece } = this;
      const { points, box, answer, choice } = piece.state;
      const ambiguous = answer && answer.num > 1 && !piece.state.painted;
      $("choices").hidden = !ambiguous;
      if (ambiguous) {
        const words = answer.scores.map((score, n) => {
          const word = Object.assign(document.createElement("span"), { textContent: `${SIZES[n]} ${score.toFixed(2)}` });
          word.classList.toggle("chosen", n === choice);
          return word;
        });
        $("choices").replaceChildren(...words, Object.assign(document.createElement("kbd"), { textContent: "C" }));
      }
      const parts = [];
      if (piece.editing) parts.push(`changes mask ${piece.editing.number + 1}`);
      if (points.length) parts.push(`${points.length} ${points.length === 1 ? "point" : "points"}`);
      if (box) parts.push("box");
      if (piece.strokes) parts.push(`${piece.strokes} ${piece.strokes === 1 ? "stroke" : "strokes"}`);
      if (piece.score !== null) parts.push(`score ${piece.score.toFixed(2)}`);
      const idle = this.decoder && !this.decoder.ready ? "The image is being prepared…" : "Point at something.";
      $("object-state").textContent = text ?? (parts.length ? parts.join(", ") : idle);
      document.querySelector('[data-action="commit"]').disabled = !piece.bits;
      document.querySelector('[data-action="drop"]').disabled = piece.empty;
      document.querySelector('[data-action="undo"]').disabled = !piece.steps.length && piece.empty && !this.undoable.length;
      document.querySelector('[data-action="redo"]').disabled = !piece.undone.length;
    }

    listMasks() {
      const list = $("masks");
      const left = this.proposals.length;
      $("count").textContent = left ? `${this.masks.length - left}, ${left} proposed` : this.masks.length;
      $("proposals").hidden = !left || this.reviews;
      const signature = this.masks.map((mask) => mask.mask + mask.origin + mask.rle.counts.length).join();
      if (signature === this.listed) return;
      this.listed = signature;
      this.mark(null);
      list.replaceChildren(...this.masks.map((mask) => this.row(mask)).reverse());
    }

    row(mask) {
      const row = Object.assign(document.createElement("li"), { tabIndex: 0, title: mask.name });
      row.dataset.mask = mask.mask;
      const chip = document.createElement("i");
      chip.style.background = `rgb(${mask.color})`;
      const part = (className, textContent) => Object.assign(document.createElement("span"), { className, textContent });
      row.append(chip, String(mask.number + 1), part("name", mask.name), part("origin", mask.origin));
      row.addEventListener("mouseenter", () => this.mark(mask));
      row.addEventListener("mouseleave", () => this.mark(null));
      row.addEventListener("focus", () => this.mark(mask));
      const edit = () => !this.reviews && this.edit(mask);
      row.addEventListener("dblclick", edit);
      row.addEventListener("keydown", (event) => event.key === "Enter" && edit());
      return row;
    }

    showStates(states) {
      const total = Object.values(states).reduce((a, b) => a + b, 0);
      const ended = (states.done ?? 0) + (states.accepted ?? 0) + (states.skipped ?? 0);
      $("queue").textContent = this.reviewer ? `${states.done ?? 0} to review` : `${ended} of ${total} done`;
    }

    saved(state, left) {
      $("saved").dataset.state = state;
      $("saved").textContent = { saved: "saved", saving: "saving…", waiting: `server away, ${left} kept here` }[state];
    }

    say(text, kind = "error") {
      $("message").textContent = text;
      $("message").hidden = !text;
      $("message").className = kind;
      clearTimeout(this.silence);
      if (kind === "note") this.silence = setTimeout(() => this.say(""), 4000);
    }

    failed(error) {
      if (!(error instanceof ApiError)) console.error(error);
      this.say(error.message);
    }

    commitRefused(message, error) {
      this.say(`A mask was not taken: ${error.message}`);
      if (message.task === this.task?.id && error.status !== 422) this.open(() => api.json("GET", `/api/tasks/${message.task}`)).catch(() => this.next());
    }

    tick() {
      const { seconds } = this.clock;
      const works = this.task && !this.reviews;
      const long = works && seconds > this.session.move_on_after_s;
      $("clock").textContent = works ? `${Math.floor(seconds)} s` : "";
      $("clock").classList.toggle("long", Boolean(long));
      $("hint").hidden = !long;
      if (long) $("hint").textContent = `Over ${this.session.move_on_after_s} s on one object: if the rest is as hard, move on to the next image (D).`;
    }

    async word() {
      if (!this.task || this.reviews) return;
      const seconds = this.clock.word();
      if (!seconds) return; // nobody is there: the lease may end
      await api.json("POST", `/api/tasks/${this.task.id}/heartbeat`, { seconds }).catch((error) => this.failed(error));
    }
  };
