// The login form. The link that sam-annotate prints carries the token behind the #, which browsers do not send to the server.
import { $, byId } from "./dom.js";

const token = decodeURIComponent(window.location.hash.slice(1));
$("invalid").hidden = !window.location.search.includes("invalid");
if (token) {
  byId("token", HTMLInputElement).value = token;
  window.history.replaceState(null, "", "/login");
  document.forms[0].requestSubmit();
}
