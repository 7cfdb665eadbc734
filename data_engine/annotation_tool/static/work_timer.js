// Work time of an annotator: a pause longer than `idleAfter` seconds counts as `idleAfter`.

export class WorkTimer {
  #idleAfter;
  #lastActivity = performance.now();
  #work = 0;
  #wall = 0;
  #sinceHeartbeat = 0;

  /** @param {number} idleAfter Seconds. */
  constructor(idleAfter) {
    this.#idleAfter = idleAfter;
  }

  /** Record activity; called at every pointer movement and key. */
  recordActivity() {
    const now = performance.now();
    const pause = (now - this.#lastActivity) / 1000;
    const counted = Math.min(pause, this.#idleAfter);
    this.#lastActivity = now;
    this.#work += counted;
    this.#sinceHeartbeat += counted;
    this.#wall += pause;
  }

  /** Work time on the current mask in seconds, with the current pause. */
  get seconds() {
    return this.#work + Math.min((performance.now() - this.#lastActivity) / 1000, this.#idleAfter);
  }

  /** Work and wall time on the current mask at the last activity, in seconds. */
  get elapsed() {
    return { seconds: this.#work, wall: this.#wall };
  }

  /** Start the time of a mask, from an earlier time if there is one. */
  start(work = 0, wall = 0) {
    this.recordActivity();
    this.#work = work;
    this.#wall = wall;
  }

  /** Return the time of the current mask as a commit states it, and reset it. */
  takeMaskTime() {
    this.recordActivity();
    const time = { seconds: round(this.#work), wall_seconds: round(this.#wall) };
    this.#work = this.#wall = 0;
    return time;
  }

  /** Return the work time since the last call, in seconds. */
  takeHeartbeatTime() {
    const seconds = round(this.#sinceHeartbeat);
    this.#sinceHeartbeat = 0;
    return seconds;
  }
}

/** @param {number} seconds */
const round = (seconds) => Math.round(seconds * 1000) / 1000;
