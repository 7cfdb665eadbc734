// The object at hand, written down at each step: a page that is loaded again goes on with it.

export const WithDrafts = (Base) =>
  class extends Base {
    get draftKey() {
      return `sam-annotate draft ${this.session.annotator}`;
    }

    keepDraft() {
      if (this.piece.empty) return this.forgetDraft();
      const draft = { task: this.task.id, seconds: this.clock.work, wall: this.clock.wall, ...this.piece.draft() };
      return localStorage.setItem(this.draftKey, JSON.stringify(draft));
    }

    forgetDraft() {
      localStorage.removeItem(this.draftKey);
    }

    restoreDraft() {
      const draft = JSON.parse(localStorage.getItem(this.draftKey) || "null");
      if (draft?.task !== this.task.id || this.reviews) return;
      const editing = this.masks.find((mask) => mask.mask === draft.editing) ?? null;
      if (draft.editing && !editing) return;
      this.piece.restore(draft, editing);
      this.clock.start(draft.seconds, draft.wall);
      if (editing) this.layers.redraw(this.masks.filter((mask) => mask !== editing));
      this.say("The object that was at hand is here again.", "note");
    }
  };
