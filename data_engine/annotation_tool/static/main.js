// Entry point of the page.
import { api } from "./api.js";
import { Application } from "./application.js";
import { StatusBar } from "./status_bar.js";

const status = new StatusBar();

async function main() {
  const app = new Application(await api.json("GET", "/api/session"), status);
  Object.assign(window, { app }); // for tests and the console
  await app.start();
}

main().catch((error) => status.showError(error));
