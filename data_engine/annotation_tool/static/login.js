// The link that sam-annotate prints carries the token behind the #, which no server and no log sees.
const token = decodeURIComponent(window.location.hash.slice(1));
document.getElementById("refused").hidden = !window.location.search.includes("invalid");
if (token) {
  document.getElementById("token").value = token;
  window.history.replaceState(null, "", "/login");
  document.forms[0].requestSubmit();
}
