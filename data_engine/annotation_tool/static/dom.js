// Helpers for the document and for coordinates.

/** @import { Box, Point } from "./types.js" */

/**
 * Return the element with an id; throw if it is missing or of another class.
 * @template {Element} T
 * @param {string} id
 * @param {new (...args: any[]) => T} type
 * @returns {T}
 */
export function byId(id, type) {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`the page has no ${type.name} #${id}`);
  return element;
}

/**
 * Return the HTML element with an id.
 * @param {string} id
 */
export const $ = (id) => byId(id, HTMLElement);

/**
 * Return all buttons that match a selector.
 * @param {string} selector
 * @returns {HTMLButtonElement[]}
 */
export const buttons = (selector) =>
  [...document.querySelectorAll(selector)].filter((element) => element instanceof HTMLButtonElement);

/**
 * Enable or disable the buttons of an action.
 * @param {string} action
 * @param {boolean} enabled
 */
export function enableAction(action, enabled) {
  for (const button of buttons(`[data-action="${action}"]`)) button.disabled = !enabled;
}

/**
 * Create an element with a text.
 * @param {string} tag
 * @param {string} text
 * @param {string} className
 */
export function textElement(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

/**
 * Return whether the target of an event matches a selector.
 * @param {Event} event
 * @param {string} selector
 */
export const targetMatches = (event, selector) => event.target instanceof Element && event.target.matches(selector);

/** @returns {boolean} Whether a dialog is open. */
export const dialogIsOpen = () => document.querySelector("dialog[open]") !== null;

/**
 * Limit a value to 0 ... max.
 * @param {number} value
 * @param {number} max
 */
export const clamp = (value, max) => Math.min(Math.max(value, 0), max);

/**
 * Return the box between two corners.
 * @param {Point} a
 * @param {Point} b
 * @returns {Box}
 */
export const boxFromCorners = (a, b) => [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];

/** @param {number} milliseconds */
export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
