// The canvas: where the image lies on it, and what is drawn over it.
const ADDS = "#3ddc84";
const REMOVES = "#ff5d5d";

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.scale = 1;
    this.left = 0;
    this.top = 0;
    this.image = null;
    this.scene = null;
    this.asked = false;
    new ResizeObserver(() => this.resized()).observe(canvas);
  }

  resized() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    if (!this.touched) this.fit();
    this.draw();
  }

  show(image, width, height) {
    Object.assign(this, { image, width, height });
    this.fit();
  }

  fit() {
    if (!this.image) return;
    const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
    this.scale = Math.min((w - 32) / this.width, (h - 32) / this.height);
    this.left = (w - this.width * this.scale) / 2;
    this.top = (h - this.height * this.scale) / 2;
    this.touched = false;
    this.draw();
  }

  zoom(factor, x, y) {
    const scale = Math.min(40, Math.max(0.02, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.touched = true;
    this.draw();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.touched = true;
    this.draw();
  }

  toImage(x, y) {
    return { x: (x - this.left) / this.scale, y: (y - this.top) / this.scale };
  }

  toScreen(x, y) {
    return { x: x * this.scale + this.left, y: y * this.scale + this.top };
  }

  // One frame for any number of changes.
  draw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.paint();
    });
  }

  paint() {
    const { context: c, scene } = this;
    const ratio = this.canvas.width / Math.max(1, this.canvas.clientWidth);
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.fillStyle = "#14161a";
    c.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.image || !scene) return;
    c.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.left, ratio * this.top);
    c.imageSmoothingEnabled = this.scale < 3;
    c.drawImage(this.image, 0, 0, this.width, this.height);
    const over = (canvas, alpha) => {
      c.globalAlpha = alpha;
      c.drawImage(canvas, 0, 0, this.width, this.height);
      c.globalAlpha = 1;
    };
    if (!scene.hidden) {
      if (scene.style !== "outlines") over(scene.masks.fills, scene.opacity);
      if (scene.style !== "fills") over(scene.masks.outlines, 0.95);
      if (scene.marked) over(scene.marked, 0.9);
    }
    if (scene.hover) {
      over(scene.hover.fills, 0.35);
      over(scene.hover.outlines, 0.8);
    }
    if (scene.current) {
      over(scene.current.fills, Math.max(0.25, scene.opacity));
      over(scene.current.outlines, 1);
    }
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paintPrompts(c, scene);
    this.paintPointer(c, scene);
  }

  paintPrompts(c, scene) {
    if (scene.box) {
      const a = this.toScreen(scene.box[0], scene.box[1]);
      const b = this.toScreen(scene.box[2], scene.box[3]);
      c.lineWidth = 1.5;
      c.strokeStyle = ADDS;
      c.setLineDash([6, 4]);
      c.strokeRect(a.x, a.y, b.x - a.x, b.y - a.y);
      c.setLineDash([]);
    }
    for (const point of scene.points) {
      const { x, y } = this.toScreen(point.x, point.y);
      c.beginPath();
      c.arc(x, y, point === scene.near ? 8 : 6, 0, 2 * Math.PI);
      c.fillStyle = point.label ? ADDS : REMOVES;
      c.fill();
      c.lineWidth = 2;
      c.strokeStyle = "#0c0d10";
      c.stroke();
      c.beginPath(); // the sign too, for those who do not tell the colors apart
      c.moveTo(x - 3, y);
      c.lineTo(x + 3, y);
      if (point.label) {
        c.moveTo(x, y - 3);
        c.lineTo(x, y + 3);
      }
      c.stroke();
    }
  }

  paintPointer(c, { pointer, tool, brush, byKeys }) {
    if (!pointer) return;
    const { x, y } = this.toScreen(pointer.x, pointer.y);
    if (tool === "brush" || tool === "eraser") {
      for (const [width, color] of [[3, "#000a"], [1.5, tool === "brush" ? ADDS : REMOVES]]) {
        c.beginPath();
        c.arc(x, y, Math.max(1, brush * this.scale), 0, 2 * Math.PI);
        c.lineWidth = width;
        c.strokeStyle = color;
        c.stroke();
      }
    } else if (byKeys) {
      for (const [width, color] of [[3, "#000a"], [1, "#fff"]]) {
        c.beginPath();
        c.moveTo(x - 14, y);
        c.lineTo(x + 14, y);
        c.moveTo(x, y - 14);
        c.lineTo(x, y + 14);
        c.lineWidth = width;
        c.strokeStyle = color;
        c.stroke();
      }
    }
  }
}
