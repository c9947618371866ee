// Charts by Plotly, whose script is fetched only when the first one is drawn. Colours follow the page, light or dark.

const set = Element.prototype.setAttribute;

/** The policy of these pages refuses style attributes that are set as text. Set through the element's style they are fine, and Plotly
 * does not mind. */
Element.prototype.setAttribute = function (name, value) {
  if (name === "style") this.style.cssText = value;
  else set.call(this, name, value);
};

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 60_000;

let loading = null;
const drawn = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");

const library = () => (loading ??= fetched());

/** Plotly, asked for again with longer and longer pauses while the server is away. */
async function fetched() {
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    try {
      await import("./plotly.min.js");
      return window.Plotly;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  toImageButtonOptions: { format: "png", scale: 2 },
};

const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The page's colours by what they mean. */
export function colours() {
  const names = ["ink", "quiet", "line", "panel", "accent", "good", "bad", "warn", "soft"];
  return Object.fromEntries(names.map((name) => [name, token(`--${name}`)]));
}

/** How kinds of trials are drawn: by shape as well as by colour. */
export function marks() {
  const c = colours();
  return {
    feasible: { name: "meets the target", symbol: "circle", color: c.good },
    infeasible: { name: "misses the target", symbol: "diamond", color: c.bad },
    stopped: { name: "stopped early, certain to miss", symbol: "triangle-up", color: c.warn },
    failed: { name: "failed", symbol: "x-thin-open", color: c.quiet },
    original: { name: "the original", symbol: "square", color: c.ink },
    best: { name: "the best so far", symbol: "star", color: c.accent },
  };
}

/** A scale from none to much for heat maps that reads in grey too. */
export const scale = () =>
  dark.matches
    ? [[0, "#16202b"], [0.25, "#1f4e79"], [0.5, "#3f8fc4"], [0.75, "#8fd0e8"], [1, "#f4f9c8"]]
    : [[0, "#f7fbff"], [0.25, "#c6dbef"], [0.5, "#6baed6"], [0.75, "#2171b5"], [1, "#08306b"]];

function themed(layout) {
  const c = colours();
  const font = { family: token("--font") || "system-ui, sans-serif", size: 13, color: c.ink };
  const axis = { gridcolor: c.line, zerolinecolor: c.line, linecolor: c.line, tickcolor: c.line, automargin: true };
  const base = {
    font,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 16, t: 12, b: 48 },
    hoverlabel: { bgcolor: c.panel, bordercolor: c.line, font: { ...font, size: 12 }, align: "left" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
    hovermode: "closest",
    dragmode: "zoom",
  };
  const merged = { ...base, ...layout, font };
  for (const name of Object.keys(layout)) if (/^[xy]axis\d*$/.test(name)) merged[name] = { ...axis, ...layout[name] };
  merged.xaxis ??= { ...axis };
  merged.yaxis ??= { ...axis };
  return merged;
}

/**
 * Draws a chart into an element, or redraws it in place. make(): {data, layout} with the colours of the moment; it is asked again when the
 * system changes between light and dark. clicked(point) hears of clicks on marks. label: what the chart shows, in words.
 */
export async function plot(target, make, { clicked = null, label = "" } = {}) {
  const plotly = await library();
  const first = !drawn.has(target);
  drawn.set(target, make);
  await render(plotly, target, make);
  if (label) {
    target.setAttribute("role", "figure");
    target.setAttribute("aria-label", label);
  }
  if (first && clicked) target.on("plotly_click", (event) => clicked(event.points[0]));
  return target;
}

function render(plotly, target, make) {
  const { data, layout } = make();
  // What the user has zoomed to stays while new points come in.
  return plotly.react(target, data, themed({ uirevision: "kept", ...layout }), CONFIG);
}

dark.addEventListener("change", async () => {
  const plotly = await library();
  for (const [target, make] of drawn) if (target.isConnected) render(plotly, target, make);
});
