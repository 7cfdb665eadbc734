// The image at hand: how it comes, what is shown of it, how it ends.
import { api } from "./api.js";
import { Layers, colorOf, cropped } from "./layers.js";
import { Piece } from "./mask_editor.js";
import { Resize } from "./resample.js";
import { decode as decodeRle } from "./rle.js";
import { $ } from "./dom.js";

export const WithTasks = (Base) =>
  class extends Base {
    async next() {
      await this.open(() => api.json("POST", this.reviews ? `/api/review/next?after=${this.task?.id ?? 0}` : "/api/next"));
    }

    async open(ask) {
      this.busy = true;
      try {
        const { task, task_counts, correcting } = await ask();
        this.showStates(task_counts);
        document.body.classList.toggle("nothing", !task);
        if (!task) return this.nothingLeft();
        if (this.reviewer && this.reviews === Boolean(correcting)) {
          this.reviews = !correcting;
          this.showMode();
          if (correcting) await this.openDecoder();
        }
        await this.show(task);
      } catch (error) {
        this.failed(error);
      } finally {
        this.busy = false;
      }
      return undefined;
    }

    nothingLeft() {
      this.task = null;
      this.view.image = null;
      this.view.draw();
      $("image-name").textContent = this.reviews ? "Nothing to review" : "No image left";
      $("image-note").textContent = $("object-state").textContent = "";
      this.masks = [];
      this.listMasks();
      this.say(this.reviews ? "Nothing waits for review. Load the page again later." : "All images are done or with others. Thank you.", "end");
    }

    async show(task) {
      this.task = task;
      this.resize = new Resize(task.height, task.width, this.session.model?.image_size ?? 1024);
      this.piece = new Piece(task.height, task.width, this.resize);
      this.layers = new Layers(task.height, task.width);
      this.current = new Layers(task.height, task.width);
      this.hover = null;
      this.pointer = { x: task.width / 2, y: task.height / 2 };
      this.byKeys = false;
      this.marked = null;
      this.undoable = [];
      // A reviewer sees what the image will have: what was proposed and not looked at is not part of it.
      this.masks = task.masks.filter((mask) => !this.reviews || mask.origin !== "proposed").map((mask) => this.drawable(mask));
      this.setBrush(Math.max(3, Math.round(Math.max(task.height, task.width) / 80)));
      $("image-name").textContent = task.origin;
      const whose = this.reviews ? `, by ${task.annotator}` : this.reviewer ? ", you correct it" : "";
      const note = `${task.width} × ${task.height}${whose}${task.note && `; sent back: ${task.note}`}`;
      Object.assign($("image-note"), { textContent: note, title: note });
      $("image-note").classList.toggle("back", Boolean(task.note));
      this.say("");
      const answer = await api.raw("GET", `/api/tasks/${task.id}/image`);
      this.view.show(await createImageBitmap(await answer.blob()), task.width, task.height);
      this.layers.redraw(this.masks);
      this.clock.start();
      this.restoreDraft();
      this.refresh();
      $("canvas").focus({ preventScroll: true });
      if (this.decoder && !this.reviews) this.loadEmbedding(task);
    }

    async loadEmbedding(task) {
      try {
        const ready = await this.decoder.load(task, () => this.describe("The image is being prepared…"));
        if (ready) {
          this.describe();
          if (this.piece.state.points.length && !this.piece.bits) this.ask();
          if (this.session.has_proposals) await this.loadProposals(task);
        }
      } catch (error) {
        this.failed(error);
      }
    }

    // What the model proposes; it may come when the annotator has begun.
    async loadProposals(task) {
      let masks = null;
      while (this.task === task && !masks) {
        ({ masks } = await api.json("POST", `/api/tasks/${task.id}/proposals`));
        if (!masks) await new Promise((resolve) => setTimeout(resolve, 500));
      }
      if (this.task !== task) return;
      const there = new Set(this.masks.map((mask) => mask.mask));
      const proposed = masks.filter((mask) => mask.origin === "proposed" && !there.has(mask.mask));
      this.masks = [...this.masks, ...proposed.map((mask) => this.drawable(mask))].sort((a, b) => a.number - b.number);
      this.layers.redraw(this.piece.editing ? this.masks.filter((mask) => mask.mask !== this.piece.editing.mask) : this.masks);
      this.refresh();
    }

    drawable(mask) {
      const bits = decodeRle(mask.rle.counts, this.task.height, this.task.width);
      return { ...mask, crop: cropped(bits, this.task.height, this.task.width), color: colorOf(mask.number, mask.origin) };
    }
  };
