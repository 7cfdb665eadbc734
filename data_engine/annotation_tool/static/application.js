// The application: creates the parts of the page and connects their events.
import { Actions } from "./actions.js";
import { Cursor } from "./cursor.js";
import { DecoderClient } from "./decoder_client.js";
import { DisplaySettings } from "./display_settings.js";
import { $, buttons, byId } from "./dom.js";
import { DraftStore } from "./drafts.js";
import { ANNOTATION_KEYS, KeyBindings, REVIEW_KEYS } from "./key_bindings.js";
import { MaskController } from "./mask_controller.js";
import { MaskEditor } from "./mask_editor.js";
import { MaskList } from "./mask_list.js";
import { MaskListView } from "./mask_list_view.js";
import { Mode } from "./mode.js";
import { Outbox } from "./outbox.js";
import { HIT_DISTANCE, PointerInput } from "./pointer_input.js";
import { Preview } from "./preview.js";
import { PromptController } from "./prompt_controller.js";
import { Resize } from "./resample.js";
import { SceneRenderer } from "./scene_renderer.js";
import { SidePanel } from "./side_panel.js";
import { StatusBar } from "./status_bar.js";
import { TaskController } from "./task_controller.js";
import { Tools } from "./tools.js";
import { Viewport } from "./viewport.js";
import { WorkTimer } from "./work_timer.js";

/** @import { Session, Task } from "./types.js" */

const DEFAULT_IMAGE_SIZE = 1024; // without a model
const TIMER_MS = 500;
const HEARTBEAT_MS = 20000;
const ACTIVITY_EVENTS = ["pointermove", "pointerdown", "keydown", "wheel"];
const ANNOTATION_SECTIONS = ["mask", "tools", "image-actions", "brush-size", "runtime"];

export class Application {
  #session;
  #canvas = byId("canvas", HTMLCanvasElement);

  /**
   * @param {Session} session
   * @param {StatusBar} status
   */
  constructor(session, status) {
    this.#session = session;
    this.status = status;
    this.mode = new Mode(session.role === "reviewer");
    this.settings = new DisplaySettings();
    this.timer = new WorkTimer(session.idle_after_s);
    this.outbox = new Outbox(session.annotator);
    this.drafts = new DraftStore(session.annotator);
    this.viewport = new Viewport(this.#canvas);
    this.cursor = new Cursor();
    this.decoder = session.model && new DecoderClient(session.model);
    this.editor = new MaskEditor();
    this.tools = new Tools(this.editor);
    this.masks = new MaskList();
    const { cursor, decoder, editor, masks, mode, outbox, settings, status: bar, timer, tools, viewport } = this;
    this.preview = new Preview({ editor, decoder, tools, settings, mode, status: bar });
    const { preview } = this;
    this.prompts = new PromptController({ editor, decoder, preview, status: bar });
    const { prompts } = this;
    const checkpoint = session.model?.checkpoint ?? "";
    this.maskController = new MaskController({ editor, masks, prompts, outbox, timer, status: bar }, checkpoint);
    this.tasks = new TaskController(mode, outbox, timer, bar);
    this.scene = new SceneRenderer({ viewport, editor, masks, preview, prompts, tools, cursor, settings });
    this.panel = new SidePanel(editor, this.maskController, decoder);
    this.maskListView = new MaskListView(masks, mode);
    const { maskController, tasks } = this;
    const skipReasons = session.skip_reasons;
    this.actions = new Actions({
      cursor,
      settings,
      maskController,
      editor,
      masks,
      preview,
      prompts,
      skipReasons,
      status: bar,
      tasks,
      tools,
      viewport,
    });
    this.keys = new KeyBindings((action, press) => this.actions.run(action, press));
    this.pointer = new PointerInput(this.#canvas, viewport, this.#gestures());
  }

  async start() {
    this.status.showUser(this.#session.annotator);
    this.#connectParts();
    this.#connectPage();
    if (!this.decoder) this.status.showRuntime("no model: draw masks with the brush");
    if (!this.mode.reviewing) await this.decoder?.open();
    this.#showMode();
    await this.outbox.flush(); // commits that an earlier page could not send
    await this.tasks.next();
  }

  #connectParts() {
    const { cursor, decoder, editor, masks, outbox, preview, prompts, scene, settings, status, tasks, tools } = this;
    editor.changed.subscribe(() => this.#maskStepped());
    editor.pixelsChanged.subscribe(() => scene.updateCurrentMask());
    masks.changed.subscribe(() => this.panel.update());
    masks.markChanged.subscribe(() => scene.update());
    this.maskListView.editRequested.subscribe((mask) => this.maskController.edit(mask));
    tools.selected.subscribe(() => preview.clear());
    for (const event of [preview.changed, prompts.changed, cursor.moved, tools.radiusChanged, settings.changed])
      event.subscribe(() => scene.update());
    settings.changed.subscribe(() => this.#showOpacity());
    outbox.changed.subscribe(({ state, numPending }) => status.showSaved(state, numPending));
    outbox.rejected.subscribe(({ message, error }) => {
      status.showMessage(`The server rejected a mask: ${error.message}`);
      if (message.task === tasks.task?.id && error.status !== 422) tasks.reload();
    });
    decoder?.runtimeChanged.subscribe(({ text, isFallback }) => status.showRuntime(text, isFallback));
    this.mode.changed.subscribe(() => this.#showMode());
    tasks.opened.subscribe((task) => this.#openTask(task));
    tasks.imageLoaded.subscribe(({ task, image }) => this.#showImage(task, image));
    tasks.ended.subscribe(() => this.drafts.remove());
  }

  #connectPage() {
    const { actions, settings, timer, tools } = this;
    for (const button of buttons("[data-action]"))
      button.addEventListener("click", () => actions.run(button.dataset.action ?? ""));
    for (const button of buttons("[data-tool]")) button.addEventListener("click", () => tools.select(button.dataset.tool ?? ""));
    const opacity = byId("opacity", HTMLInputElement);
    opacity.addEventListener("input", () => settings.set({ opacity: Number(opacity.value) / 100 }));
    const brush = byId("brush", HTMLInputElement);
    brush.addEventListener("input", () => tools.setRadius(Number(brush.value)));
    for (const kind of ACTIVITY_EVENTS) {
      window.addEventListener(kind, () => timer.recordActivity(), { capture: true, passive: true });
    }
    setInterval(() => this.#showWorkTime(), TIMER_MS);
    setInterval(() => this.tasks.sendHeartbeat(), HEARTBEAT_MS);
    this.#showOpacity();
    tools.select(tools.current);
  }

  /** @returns {import("./pointer_input.js").Gestures} */
  #gestures() {
    const { cursor, mode, preview, prompts, tasks, tools, viewport } = this;
    return {
      isActive: () => tasks.task !== null && !mode.reviewing,
      isBrush: () => tools.isBrush,
      pointNear: (p, radius) => prompts.pointNear(p, radius),
      hover: (p) => {
        prompts.hover(p, HIT_DISTANCE / viewport.scale);
        preview.update(p, prompts.isInside(p));
        cursor.moveTo(p);
      },
      leave: () => preview.clear(),
      click: (p, label) => prompts.addPoint(p, label),
      dragBox: (a, b) => prompts.dragBox(a, b),
      dropBox: (a, b) => prompts.setBox(a, b),
      dragPoint: (point, p) => prompts.dragPoint(point, p),
      dropPoint: () => prompts.dropPoint(),
      deletePoint: (point) => prompts.deletePoint(point),
      beginStroke: (p, inverted) => {
        cursor.moveTo(p);
        tools.beginStroke(p, inverted);
      },
      extendStroke: (p) => {
        cursor.moveTo(p);
        tools.extendStroke(p);
      },
      endStroke: () => tools.endStroke(),
      cancel: () => {
        prompts.cancelDrag();
        tools.endStroke();
      },
      scaleBrush: (factor) => tools.setRadius(tools.radius * factor),
    };
  }

  /** Save the unfinished mask and show it, after each of its steps. */
  #maskStepped() {
    const { drafts, editor, timer } = this;
    const task = this.tasks.task;
    if (editor.isEmpty || !task) drafts.remove();
    else drafts.save({ task: task.id, ...timer.elapsed, ...editor.toDraft() });
    this.scene.updateCurrentMask();
    this.panel.update();
  }

  /** Show the keys and sections of the mode: a reviewer has others, except while they correct an image. */
  #showMode() {
    const { reviewing } = this.mode;
    this.keys.setTable(reviewing ? REVIEW_KEYS : ANNOTATION_KEYS, $("keys"));
    for (const id of ANNOTATION_SECTIONS) $(id).hidden = reviewing;
    $("review-actions").hidden = !reviewing;
    this.#canvas.classList.toggle("reviewing", reviewing);
    if (reviewing) this.tools.select("prompt");
    else if (!this.decoder) this.tools.select("brush");
  }

  #showOpacity() {
    byId("opacity", HTMLInputElement).value = String(100 * this.settings.values.opacity);
  }

  #showWorkTime() {
    const isWorking = this.tasks.task !== null && !this.mode.reviewing;
    this.status.showWorkTime(isWorking ? this.timer.seconds : null, this.#session.move_on_after_s);
  }

  /** @param {Task | null} task */
  #openTask(task) {
    document.body.classList.toggle("nothing", !task);
    const { height, width } = task ?? { height: 1, width: 1 };
    const { reviewing } = this.mode;
    // Proposed masks that were not reviewed are not exported, so a reviewer does not see them.
    const visible = task ? task.masks.filter((mask) => !reviewing || mask.origin !== "proposed") : [];
    this.scene.open(task);
    this.editor.open(height, width, new Resize(height, width, this.#session.model?.image_size ?? DEFAULT_IMAGE_SIZE));
    this.preview.open(task);
    this.prompts.open(task);
    this.maskController.open(task);
    this.masks.open(height, width, visible);
    if (!task) return this.#showNoTask();
    this.cursor.reset({ x: width / 2, y: height / 2 });
    this.tools.setRadius(Math.max(3, Math.round(Math.max(height, width) / 80)));
    const role = reviewing ? `, by ${task.annotator}` : this.mode.isReviewer ? ", corrected by you" : "";
    const note = task.note && `; sent back: ${task.note}`;
    this.status.showImage(task.origin, `${width} × ${height}${role}${note}`, Boolean(task.note));
    this.status.clearMessage();
  }

  #showNoTask() {
    const { reviewing } = this.mode;
    this.viewport.clear();
    this.panel.clear();
    this.status.showImage(reviewing ? "No image to review" : "No image left", "", false);
    const text = reviewing
      ? "No image is waiting for review. Reload the page later."
      : "All images are done or held by other annotators.";
    this.status.showMessage(text, "end");
  }

  /**
   * @param {Task} task
   * @param {ImageBitmap} image
   */
  #showImage(task, image) {
    this.viewport.showImage(image, task.width, task.height);
    this.timer.start();
    this.#restoreDraft(task);
    this.scene.updateCurrentMask();
    this.panel.update();
    this.#canvas.focus({ preventScroll: true });
    if (this.decoder && !this.mode.reviewing) this.#loadEmbedding(this.decoder, task);
  }

  /** @param {Task} task */
  #restoreDraft(task) {
    const draft = this.drafts.load(task.id);
    if (!draft || this.mode.reviewing) return;
    const editing = draft.editing ? this.masks.find(draft.editing) : null;
    if (draft.editing && !editing) return;
    this.editor.restore(draft, editing);
    this.timer.start(draft.seconds, draft.wall);
    this.masks.hide(editing);
    this.status.showNote("The unfinished mask was restored.");
  }

  /**
   * @param {DecoderClient} decoder
   * @param {Task} task
   */
  async #loadEmbedding(decoder, task) {
    const { editor, masks, panel, prompts, status, tasks } = this;
    try {
      const loading = decoder.load(task);
      panel.update();
      if (!(await loading)) return;
      panel.update();
      if (editor.hasPrompts && !editor.bits) prompts.decode();
      if (!this.#session.has_proposals) return;
      const proposals = await tasks.loadProposals(task);
      if (proposals.length) masks.addProposals(proposals);
    } catch (error) {
      status.showError(error);
    }
  }
}
