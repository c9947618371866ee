// Small helpers that build and change what is on the page. Text is always set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** An element: h("a.button", {href}, "words", other). Attributes that are null, undefined or false are left out. */
export function h(kind, ...rest) {
  const [tag, ...classes] = kind.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  const plain = rest[0] && typeof rest[0] === "object" && !(rest[0] instanceof Node) && !Array.isArray(rest[0]);
  for (const [name, value] of Object.entries(plain ? rest.shift() : {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([property, text]) => node.style.setProperty(property, text));
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...rest.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Replaces what an element holds. */
export function fill(target, ...children) {
  const node = typeof target === "string" ? $(target) : target;
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Sets text only where it differs, so that readers of the screen are not told the same again. */
export function say(target, text) {
  const node = typeof target === "string" ? $(target) : target;
  if (node.textContent !== text) node.textContent = text;
}

export function show(target, visible = true) {
  (typeof target === "string" ? $(target) : target).hidden = !visible;
}

/** Tells readers of the screen. */
export const announce = (text) => say("announcer", text);

/** Shows what went wrong, with each field's rule and the way out, at the top of the page; without an error it clears that. */
export function trouble(error) {
  const box = $("trouble");
  if (!error) {
    box.hidden = true;
    return;
  }
  fill(box, ...complaint(error));
  box.hidden = false;
}

export function complaint(error) {
  const items = error.problem?.errors ?? [];
  if (items.length === 0) return [h("p", error.message)];
  return [
    h("p", h("strong", error.problem.title)),
    h("ul", items.map((item) => h("li", h("code", item.field), ` ${sentence(item)}`))),
  ];
}

/** One thing that is wrong, with the way out. */
export const sentence = (item) =>
  `${item.rule}${/[.!?]$/.test(item.rule) ? "" : "."} ${item.remedy.charAt(0).toUpperCase()}${item.remedy.slice(1)}`;

/** The first data are drawn: for tests and for whoever takes pictures. */
export const ready = () => {
  document.body.dataset.ready = "";
};

/** Runs something that asks the server; what goes wrong is shown, and told by the answer false. */
export async function attempt(work) {
  try {
    await work();
    trouble(null);
    return true;
  } catch (error) {
    trouble(error);
    return false;
  }
}

/** A query parameter of the page's own address. */
export const asked = (name) => new URLSearchParams(location.search).get(name);

/** Keeps the page's choices in its address, so that it can be shared and comes back on reload. */
export function remember(values) {
  const parameters = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") parameters.delete(name);
    else parameters.set(name, value);
  }
  const text = parameters.toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
}

/** Puts text into the clipboard and says so on the button for a moment. */
export function copying(button, text) {
  button.addEventListener("click", async () => {
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
      announce("Copied to the clipboard");
    } catch {
      button.textContent = "Select the text and copy it";
    }
    setTimeout(() => (button.textContent = label), 2000);
  });
}
