// What every page does.

import { page, remove } from "./api.js";
import { $, attempt } from "./dom.js";

$("sign-out")?.addEventListener("click", async () => {
  if (await attempt(() => remove("/session"))) location.assign(page("/signin"));
});
