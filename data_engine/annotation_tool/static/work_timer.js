// Time of work: of a pause longer than `idleAfter` seconds only so much counts.
export class Clock {
  constructor(idleAfter) {
    this.idleAfter = idleAfter;
    this.last = performance.now();
    this.work = 0;
    this.wall = 0;
    this.sinceWord = 0;
  }

  // Called at every movement and key.
  mark() {
    const now = performance.now();
    const gap = (now - this.last) / 1000;
    const counted = Math.min(gap, this.idleAfter);
    this.last = now;
    this.work += counted;
    this.sinceWord += counted;
    this.wall += gap;
  }

  // Seconds on this object so far, those not marked yet included.
  get seconds() {
    return this.work + Math.min((performance.now() - this.last) / 1000, this.idleAfter);
  }

  start(work = 0, wall = 0) {
    this.mark();
    this.work = work;
    this.wall = wall;
  }

  take() {
    this.mark();
    const taken = { seconds: round(this.work), wall_seconds: round(this.wall) };
    this.work = this.wall = 0;
    return taken;
  }

  // What was worked since this was asked last.
  word() {
    const seconds = round(this.sinceWord);
    this.sinceWord = 0;
    return seconds;
  }
}

const round = (seconds) => Math.round(seconds * 1000) / 1000;
