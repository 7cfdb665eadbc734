// Clicks, boxes and strokes on the canvas, and the preview under the pointer.
import { Layers, cropped } from "./layers.js";
import { Resize } from "./resample.js";
import { $, boxOf, clip } from "./dom.js";

const HOVER_SIDE = 1024; // pixels of the preview

export const WithPrompts = (Base) =>
  class extends Base {
    hand() {
      const at = (p) => ({ x: clip(p.x, this.task.width), y: clip(p.y, this.task.height) });
      return {
        active: () => this.task && !this.reviews,
        brushing: () => this.tool !== "prompt",
        pointNear: (p, radius) => this.pointNear(p, radius),
        over: (p) => this.over(p),
        left: () => this.clearHover(),
        clicked: (p, label) => this.inside(p) && this.point(at(p), label),
        boxGrows: (a, b) => {
          this.growing = boxOf(at(a), at(b));
          this.refresh();
        },
        boxDrawn: (a, b) => {
          this.growing = null;
          this.box(boxOf(at(a), at(b)));
        },
        pointMoves: (point, p) => {
          this.moving ??= { from: point };
          this.moving.to = { ...point, ...at(p) };
          this.refresh();
        },
        pointMoved: () => {
          const { from, to } = this.moving;
          this.moving = null;
          this.change({ points: this.piece.state.points.map((point) => (point === from ? to : point)) });
        },
        pointDeleted: (point) => this.change({ points: this.piece.state.points.filter((other) => other !== point) }),
        strokeBegins: (p, removes) => {
          this.stroke = { last: p, value: (this.tool === "brush") !== removes ? 1 : 0 };
          this.dab(p);
        },
        strokeGoesOn: (p) => this.stroke && this.dab(p),
        strokeEnds: () => this.endStroke(),
        cancelled: () => {
          this.growing = this.moving = null;
          if (this.stroke) this.endStroke();
          this.refresh();
        },
        brushBy: (factor) => this.setBrush(this.brush * factor),
      };
    }

    inside(p) {
      return p.x >= 0 && p.y >= 0 && p.x < this.task.width && p.y < this.task.height;
    }

    pointNear(p, radius) {
      return this.piece.state.points.find((point) => Math.hypot(point.x - p.x, point.y - p.y) <= radius) ?? null;
    }

    point(p, label) {
      if (!this.decoder) return this.say("There is no model here: draw with the brush (2).", "note");
      if (this.piece.empty && !label) return this.say("Begin with what belongs to the object: a click left, or a box.", "note");
      this.piece.addPoint({ ...p, label }, this.grid());
      return this.ask();
    }

    box(box) {
      if (!this.decoder) return this.say("There is no model here: draw with the brush (2).", "note");
      if (box[2] - box[0] < 1 || box[3] - box[1] < 1) return this.refresh();
      return this.change({ box });
    }

    change(change) {
      this.piece.replace(change, this.grid());
      const { points, box } = this.piece.state;
      if (!points.length && !box && !this.piece.editing) {
        this.piece.bits = null;
        this.piece.state = { ...this.piece.state, answer: null, counts: null };
        return this.stepped();
      }
      return this.ask();
    }

    grid() {
      return this.decoder ? this.session.model.logits_size : 0;
    }

    // Of answers that come late only the newest question's counts; a commit waits for it.
    ask() {
      const asking = this.askNow().finally(() => {
        if (this.asking === asking) this.asking = null;
      });
      this.asking = asking;
      return asking;
    }

    async askNow() {
      this.clearHover();
      this.stepped();
      const [piece, task] = [this.piece, this.task];
      if (!this.decoder.ready) return;
      const version = (this.version = (this.version ?? 0) + 1);
      const { points, box, base } = piece.state;
      if (!points.length && !box) return;
      const state = piece.state;
      try {
        const answer = await this.decoder.decode({ points, box, mask: base, several: piece.several });
        if (version !== this.version || this.task !== task || piece.state !== state) return;
        piece.answered(answer);
        this.stepped();
      } catch (error) {
        this.failed(error);
      }
    }

    over(p) {
      this.pointer = p;
      this.byKeys = false;
      this.near = this.task && this.pointNear(p, 10 / this.view.scale);
      const previews = this.task && !this.reviews && this.tool === "prompt" && this.looks.preview && this.piece.empty;
      if (previews && this.decoder?.ready && this.inside(p)) this.preview(p);
      else this.clearHover();
      this.view.scene && this.refreshScene();
    }

    async preview(p) {
      this.wanted = p;
      if (this.previewing) return;
      this.previewing = true;
      const { task } = this;
      try {
        while (this.wanted && this.task === task && this.piece.empty) {
          const point = this.wanted;
          this.wanted = null;
          const answer = await this.decoder.decode({ points: [{ ...point, label: 1 }], box: null, mask: null, several: true });
          if (this.task === task && this.piece.empty && !this.hoverOff) this.showHover(answer);
        }
      } catch (error) {
        this.failed(error);
      } finally {
        this.previewing = false;
      }
    }

    showHover(answer) {
      const scale = Math.min(1, HOVER_SIDE / Math.max(this.task.height, this.task.width));
      const [height, width] = [Math.max(1, Math.round(this.task.height * scale)), Math.max(1, Math.round(this.task.width * scale))];
      const best = answer.scores.indexOf(Math.max(...answer.scores));
      const bits = new Resize(height, width, this.session.model.image_size).maskOf(answer.logits, answer.grid, best * answer.grid ** 2);
      this.hover ??= new Layers(height, width);
      this.hover.only(cropped(bits, height, width), [255, 255, 255]);
      this.hovering = true;
      this.refreshScene();
    }

    clearHover() {
      this.wanted = null;
      this.hovering = false;
      this.refreshScene();
    }

    dab(p) {
      this.piece.paint(this.stroke.last, p, this.brush, this.stroke.value);
      this.stroke.last = p;
      this.pointer = p;
      this.paintCurrent();
    }

    endStroke() {
      if (!this.stroke) return;
      this.stroke = null;
      this.piece.painted();
      this.stepped();
    }

    setBrush(radius) {
      this.brush = Math.min(400, Math.max(1, radius));
      $("brush").value = this.brush;
      this.refreshScene();
    }

    setTool(tool) {
      this.tool = tool;
      for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
      $("canvas").classList.toggle("brushing", tool !== "prompt");
      this.clearHover();
    }
  };
