// The task of the page: requesting, opening and ending it, and its heartbeat.
import { api } from "./api.js";
import { sleep } from "./dom.js";
import { Emitter } from "./emitter.js";

/** @import { MaskJson, Task, TaskResponse } from "./types.js" */
/** @import { Mode } from "./mode.js" */
/** @import { Outbox } from "./outbox.js" */
/** @import { StatusBar } from "./status_bar.js" */
/** @import { WorkTimer } from "./work_timer.js" */

export class TaskController {
  /** Emits the task that is opened, null if none is left, before its image is loaded. @type {Emitter<Task | null>} */
  opened = new Emitter();
  /** Emits the task and its image. @type {Emitter<{task: Task, image: ImageBitmap}>} */
  imageLoaded = new Emitter();
  /** Emitted when a task was ended: done, skipped or reviewed. */
  ended = new Emitter();
  #mode;
  #outbox;
  #timer;
  #status;
  /** @type {Task | null} */
  #task = null;
  #busy = false;

  /**
   * @param {Mode} mode
   * @param {Outbox} outbox
   * @param {WorkTimer} timer
   * @param {StatusBar} status
   */
  constructor(mode, outbox, timer, status) {
    this.#mode = mode;
    this.#outbox = outbox;
    this.#timer = timer;
    this.#status = status;
  }

  get task() {
    return this.#task;
  }

  /** Whether a task is being opened or ended. */
  get busy() {
    return this.#busy;
  }

  /** Open the next task. */
  next() {
    return this.#open("POST", this.#mode.reviewing ? `/api/review/next?after=${this.#task?.id ?? 0}` : "/api/next");
  }

  /** Reopen the task that was ended before the current one. */
  previous() {
    return this.#open("POST", `/api/previous${this.#task ? `?before=${this.#task.id}` : ""}`);
  }

  /** Take over the reviewed task, to correct it. */
  correct() {
    return this.#open("POST", `/api/tasks/${this.#task?.id}/correct`);
  }

  /** Open the current task again, as the server has it. */
  reload() {
    return this.#open("GET", `/api/tasks/${this.#task?.id}`);
  }

  /** Mark the task as done; a reviewer who corrected it also accepts it. */
  async done() {
    await this.#end(async (task) => {
      await api.json("POST", `/api/tasks/${task.id}/done`);
      if (this.#mode.isReviewer) await api.json("POST", `/api/tasks/${task.id}/review`, { accept: true });
    });
  }

  /** @param {string} reason */
  async skip(reason) {
    await this.#end((task) => api.json("POST", `/api/tasks/${task.id}/skip`, { reason }));
  }

  /**
   * Accept the reviewed task, or send it back with a note.
   * @param {boolean} accept
   * @param {string} note
   */
  async review(accept, note = "") {
    await this.#end((task) => api.json("POST", `/api/tasks/${task.id}/review`, { accept, note }));
  }

  /** Send the work time since the last heartbeat. Without activity nothing is sent, and the lease may expire. */
  async sendHeartbeat() {
    if (!this.#task || this.#mode.reviewing) return;
    const seconds = this.#timer.takeHeartbeatTime();
    if (!seconds) return;
    await api.json("POST", `/api/tasks/${this.#task.id}/heartbeat`, { seconds }).catch((error) => this.#status.showError(error));
  }

  /**
   * Return the masks of a task with the model's proposals, once the server has computed them; [] if another task was opened.
   * @param {Task} task
   * @returns {Promise<MaskJson[]>}
   */
  async loadProposals(task) {
    while (this.#task === task) {
      const { masks } = await api.json("POST", `/api/tasks/${task.id}/proposals`);
      if (masks) return this.#task === task ? masks : [];
      await sleep(500);
    }
    return [];
  }

  /** @param {(task: Task) => Promise<unknown>} request */
  async #end(request) {
    if (!this.#task) return;
    this.#busy = true;
    try {
      await this.#outbox.flush();
      await this.sendHeartbeat();
      await request(this.#task);
      this.ended.emit();
      this.#mode.setReviewing(this.#mode.isReviewer);
    } catch (error) {
      this.#busy = false;
      this.#status.showError(error);
      return;
    }
    await this.next();
  }

  /**
   * @param {string} method
   * @param {string} url
   */
  async #open(method, url) {
    this.#busy = true;
    try {
      /** @type {TaskResponse} */
      const { task, task_counts, correcting } = await api.json(method, url);
      this.#status.showTaskCounts(task_counts, this.#mode.isReviewer);
      if (task && this.#mode.isReviewer) this.#mode.setReviewing(!correcting);
      await this.#show(task);
    } catch (error) {
      this.#status.showError(error);
    } finally {
      this.#busy = false;
    }
  }

  /** @param {Task | null} task */
  async #show(task) {
    this.#task = task;
    this.opened.emit(task);
    if (!task) return;
    const response = await api.request("GET", `/api/tasks/${task.id}/image`);
    this.imageLoaded.emit({ task, image: await createImageBitmap(await response.blob()) });
  }
}
