// Small things that several parts of the page need.
export const $ = (id) => document.getElementById(id);
export const clip = (value, most) => Math.min(Math.max(value, 0), most);
export const boxOf = (a, b) => [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];
