// The page: what it is made of, and how it starts.
import { WithActions } from "./actions.js";
import { Outbox, api } from "./api.js";
import { Clock } from "./work_timer.js";
import { Decoder } from "./decoder.js";
import { WithDrafts } from "./drafts.js";
import { KEYS, REVIEW_KEYS, fill, listen } from "./keys.js";
import { WithObjects } from "./objects.js";
import { WithPanel } from "./panel.js";
import { watch } from "./pointer.js";
import { WithPrompts } from "./prompting.js";
import { $ } from "./dom.js";
import { WithTasks } from "./tasks.js";
import { View } from "./view.js";

class Page extends WithTasks(WithPrompts(WithObjects(WithActions(WithPanel(WithDrafts(Object)))))) {
  async start() {
    this.session = await api.json("GET", "/api/session");
    const { annotator, role } = this.session;
    this.reviewer = role === "reviewer";
    this.reviews = this.reviewer; // not while they correct an image themselves
    $("who").textContent = annotator;
    this.outbox = new Outbox(annotator, (state, left) => this.saved(state, left), (message, error) => this.commitRefused(message, error));
    this.clock = new Clock(this.session.idle_after_s);
    this.view = new View($("canvas"));
    this.looks = { opacity: 0.45, style: "both", hidden: false, preview: true, ...JSON.parse(localStorage.getItem("sam-annotate looks") || "{}") };
    this.tool = "prompt";
    this.brush = 12;
    this.done = [];
    if (!this.reviews) await this.openDecoder();
    this.wire();
    await this.outbox.flush(); // what an earlier page could not send
    await this.next();
  }

  async openDecoder() {
    if (!this.session.model) $("runtime").textContent = "no model: masks are drawn with the brush";
    if (!this.session.model || this.decoder) return;
    this.decoder = new Decoder(this.session.model, (runtime, slower) => {
      $("runtime").textContent = runtime;
      $("runtime").classList.toggle("warning", slower);
    });
    await this.decoder.open();
  }

  // Which keys and buttons there are: a reviewer has others, but for an image that they correct.
  showMode() {
    fill($("keys"), this.reviews ? REVIEW_KEYS : KEYS);
    for (const id of ["object", "tools", "image-actions", "brush-size", "runtime"]) $(id).hidden = this.reviews;
    $("review-actions").hidden = !this.reviews;
    $("canvas").classList.toggle("reviewing", this.reviews);
    if (this.reviews) this.setTool("prompt");
    else if (!this.session.model) this.setTool("brush");
  }

  wire() {
    listen(() => (this.reviews ? REVIEW_KEYS : KEYS), (action, event) => this.act(action, event));
    for (const button of document.querySelectorAll("[data-action]")) {
      button.addEventListener("click", () => this.act(button.dataset.action, {}));
    }
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => this.setTool(button.dataset.tool));
    }
    $("help-button").addEventListener("click", () => this.act("help", {}));
    $("opacity").value = 100 * this.looks.opacity;
    $("opacity").addEventListener("input", () => this.look({ opacity: $("opacity").value / 100 }));
    $("brush").addEventListener("input", () => this.setBrush(Number($("brush").value)));
    for (const kind of ["pointermove", "pointerdown", "keydown", "wheel"]) {
      window.addEventListener(kind, () => this.clock.mark(), { capture: true, passive: true });
    }
    watch($("canvas"), this.view, this.hand());
    setInterval(() => this.tick(), 500);
    setInterval(() => this.word(), 20000);
    this.showMode();
    this.setTool(this.tool);
  }
}

const page = new Page();
window.page = page; // for those who look inside
page.start().catch((error) => page.failed(error));
