// What keys and buttons do.
import { api } from "./api.js";
import { $, boxOf, clip } from "./dom.js";

export const WithActions = (Base) =>
  class extends Base {
    act(action, event) {
      if (action === "help") return $("help").showModal();
      if (this.busy || (!this.task && action !== "previous")) return undefined;
      if (event.repeat && !["move", "brushSize", "opacity", "zoom", "undo", "redo", "clickHere"].includes(action)) return undefined;
      return this.actions[action]?.(event);
    }

    actions = {
      commit: () => this.commit(),
      drop: () => this.drop(),
      undo: () => this.undo(),
      redo: () => this.piece.redo() && this.stepped(),
      fit: () => this.view.fit(),
      cycle: ({ shift }) => this.piece.cycle(shift ? -1 : 1) && this.stepped(),
      tool: ({ key }) => this.setTool({ 1: "prompt", 2: "brush", 3: "eraser" }[key]),
      edit: () => this.edit(this.here),
      remove: () => {
        const point = this.pointNear(this.pointer, 10 / this.view.scale);
        if (point) return this.change({ points: this.piece.state.points.filter((other) => other !== point) });
        if (this.piece.empty && this.here) return this.delete(this.here);
        return this.say("Neither a point nor a mask is there.", "note");
      },
      accept: ({ shift }) => {
        if (shift) return this.actions.acceptAll();
        const mask = this.proposal();
        if (!mask) return this.actions.nextProposal();
        const next = this.marked === mask && this.after(mask);
        this.accept(mask);
        this.layers.redraw(this.masks);
        this.stepped();
        return next && this.mark(next);
      },
      acceptAll: () => {
        this.proposals.forEach((mask) => this.accept(mask));
        this.layers.redraw(this.masks);
        this.stepped();
      },
      reject: () => {
        const mask = this.proposal();
        if (!mask) return this.actions.nextProposal();
        const next = this.marked === mask && this.after(mask);
        this.delete(mask);
        return next && this.mark(next);
      },
      nextProposal: () => {
        if (!this.proposals.length) return this.say("No proposed mask is left.", "note");
        return this.mark(this.after(this.marked) ?? this.marked);
      },
      hide: () => this.look({ hidden: !this.looks.hidden }),
      style: () => this.look({ style: { both: "fills", fills: "outlines", outlines: "both" }[this.looks.style] }),
      opacity: ({ key }) => this.look({ opacity: clip(this.looks.opacity + (key === "," ? -0.1 : 0.1), 1) }),
      preview: () => {
        this.look({ preview: !this.looks.preview });
        this.clearHover();
        this.say(`Preview ${this.looks.preview ? "on" : "off"}.`, "note");
      },
      brushSize: ({ key }) => this.setBrush(this.brush * (key === "[" ? 1 / 1.2 : 1.2)),
      zoom: ({ key }) => {
        const { x, y } = this.view.toScreen(this.pointer.x, this.pointer.y);
        if (key === "0") this.view.fit();
        else this.view.zoom(key === "-" ? 1 / 1.25 : 1.25, x, y);
      },
      move: ({ key, shift }) => this.moveCross(key, shift),
      clickHere: () => this.clickHere(1),
      removeHere: () => this.clickHere(0),
      corner: () => {
        if (!this.firstCorner) this.firstCorner = { ...this.pointer };
        else {
          const box = boxOf(this.firstCorner, this.pointer);
          this.firstCorner = this.growing = null;
          this.box(box);
        }
      },
      done: () => this.finish("done"),
      skip: () => this.askReason("Skip this image", this.session.skip_reasons, (reason) => this.finish("skip", { reason })),
      previous: () => this.open(() => api.json("POST", `/api/previous${this.task ? `?before=${this.task.id}` : ""}`)),
      approve: () => this.finish("review", { accept: true }),
      correct: () => this.open(() => api.json("POST", `/api/tasks/${this.task.id}/correct`)),
      sendBack: () => this.askReason("Send back, and why", ["masks missing", "edges not clean", "not objects"], (note) => this.finish("review", { accept: false, note })),
    };

    moveCross(key, shift) {
      const step = (shift ? 1 : 12) / this.view.scale;
      const [dx, dy] = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key];
      const x = clip(this.pointer.x + dx * step, this.task.width - 1e-3);
      const y = clip(this.pointer.y + dy * step, this.task.height - 1e-3);
      if (this.firstCorner) this.growing = boxOf(this.firstCorner, { x, y });
      this.over({ x, y });
      this.byKeys = true;
      this.refreshScene();
    }

    clickHere(label) {
      if (this.tool === "prompt") return this.inside(this.pointer) && this.point({ x: this.pointer.x, y: this.pointer.y }, label);
      this.stroke = { last: this.pointer, value: (this.tool === "brush") === Boolean(label) ? 1 : 0 };
      this.dab(this.pointer);
      return this.endStroke();
    }

    // An object at hand is part of the image: done commits it.
    async finish(what, body) {
      if (what === "done" && !this.piece.empty) await this.commit();
      this.busy = true;
      try {
        await this.outbox.flush();
        await this.word();
        await api.json("POST", `/api/tasks/${this.task.id}/${what}`, body);
        if (what === "done" && this.reviewer) await api.json("POST", `/api/tasks/${this.task.id}/review`, { accept: true });
        this.forgetDraft();
        this.reviews = this.reviewer;
        this.showMode();
      } catch (error) {
        this.busy = false;
        return this.failed(error);
      }
      return this.next();
    }

    askReason(title, reasons, act) {
      $("reason-title").textContent = title;
      $("reason-text").value = "";
      const give = (reason) => {
        $("reason").close("");
        act(reason);
      };
      $("reasons").replaceChildren(
        ...reasons.map((reason, i) => {
          const button = Object.assign(document.createElement("button"), { type: "button" });
          button.append(reason, Object.assign(document.createElement("kbd"), { textContent: i + 1 }));
          button.addEventListener("click", () => give(reason));
          return button;
        }),
      );
      $("reason").onkeydown = (event) => {
        const reason = reasons[Number(event.key) - 1];
        if (reason && (event.target !== $("reason-text") || !$("reason-text").value)) {
          event.preventDefault();
          give(reason);
        } else if (event.key === "Enter") {
          event.preventDefault();
          if (event.target.matches('button[value=""], #reasons button')) event.target.click();
          else $("reason-ok").click();
        }
      };
      $("reason-ok").onclick = (event) => {
        event.preventDefault();
        const words = $("reason-text").value.trim();
        if (words) give(words);
        else $("reason-text").focus();
      };
      $("reason").showModal();
    }
  };
