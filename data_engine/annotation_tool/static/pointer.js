// What a hand does on the canvas, in words of the annotator: point, box, stroke, drag a point, pan, zoom.
const DRAG = 5; // screen pixels until a click is a drag
const NEAR = 10;

export function watch(canvas, view, doing) {
  let down = null;
  let space = false;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { sx: event.clientX - box.left, sy: event.clientY - box.top };
  };

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  window.addEventListener("keydown", (event) => {
    if (event.key === " " && !event.target.matches("input, button, li") && !document.querySelector("dialog[open]")) {
      space = true;
      event.preventDefault();
    }
  });
  window.addEventListener("keyup", (event) => {
    if (event.key === " ") space = false;
  });

  canvas.addEventListener("pointerdown", (event) => {
    const pans = event.button === 1 || (event.button === 0 && (space || !doing.active()));
    if (!pans && !doing.active()) return;
    canvas.focus({ preventScroll: true });
    const { sx, sy } = place(event);
    const at = view.toImage(sx, sy);
    canvas.setPointerCapture(event.pointerId);
    const removes = event.button === 2 || event.shiftKey;
    const point = pans ? null : doing.pointNear(at, NEAR / view.scale);
    down = { sx, sy, at, removes, pans, point, moved: false, button: event.button };
    if (pans) canvas.classList.add("panning");
    else if (doing.brushing()) doing.strokeBegins(at, removes);
    event.preventDefault();
  });

  canvas.addEventListener("pointermove", (event) => {
    const { sx, sy } = place(event);
    const at = view.toImage(sx, sy);
    if (!down) return doing.over(at);
    const far = Math.hypot(sx - down.sx, sy - down.sy) > DRAG;
    down.moved ||= far;
    if (down.pans) {
      view.pan(event.movementX, event.movementY);
    } else if (doing.brushing()) {
      for (const part of event.getCoalescedEvents?.() ?? []) {
        const p = place(part);
        doing.strokeGoesOn(view.toImage(p.sx, p.sy));
      }
      doing.strokeGoesOn(at);
    } else if (down.moved && down.button === 0) {
      if (down.point) doing.pointMoves(down.point, at);
      else doing.boxGrows(down.at, at);
    }
    return undefined;
  });

  const up = (event) => {
    if (!down) return;
    const { sx, sy } = place(event);
    const at = view.toImage(sx, sy);
    const was = down;
    down = null;
    canvas.classList.remove("panning");
    if (was.pans) return;
    if (event.type === "pointercancel") doing.cancelled();
    else if (doing.brushing()) doing.strokeEnds();
    else if (was.moved && was.button === 0) {
      if (was.point) doing.pointMoved();
      else doing.boxDrawn(was.at, at);
    } else if (was.point && was.removes) doing.pointDeleted(was.point);
    else if (!was.moved) doing.clicked(was.at, was.removes ? 0 : 1);
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => !down && doing.left());

  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const { sx, sy } = place(event);
      if (event.altKey) doing.brushBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
      else view.zoom(Math.exp(-event.deltaY * 0.0015), sx, sy);
    },
    { passive: false },
  );
}
