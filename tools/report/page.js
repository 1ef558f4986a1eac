"use strict";

const plots = JSON.parse(document.getElementById("plots").textContent);
const isTouch = matchMedia("(pointer: coarse)").matches;
const isNarrow = matchMedia("(max-width: 600px)");
const config = { responsive: true, displayModeBar: false };
const shown = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** The layout in the colours of the page; on touch screens a finger scrolls and does not zoom. */
function themed(layout) {
  const text = colour("--text");
  const line = colour("--line");
  const found = {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: text },
    hoverlabel: { bgcolor: colour("--raised"), bordercolor: line, font: { color: text } },
    dragmode: isTouch ? false : "zoom",
  };
  const tickfont = { size: isNarrow.matches ? 9 : 11 };
  for (const name of Object.keys(layout)) {
    if (/^[xy]axis/.test(name)) {
      const lines = { gridcolor: line, linecolor: line, zerolinecolor: line };
      found[name] = { ...lines, tickfont, ...layout[name] };
    }
  }
  return found;
}

function draw(figure, at) {
  shown.set(figure, at);
  const plot = plots[figure.id][at];
  return Plotly.react(figure.querySelector(".plot"), plot.data, themed(plot.layout), config);
}

function drawAll() {
  return Promise.all([...shown].map(([figure, at]) => draw(figure, at)));
}

for (const figure of document.querySelectorAll("figure")) {
  shown.set(figure, 0);
  const buttons = [...figure.querySelectorAll(".switch button")];
  buttons.forEach((button, at) => {
    button.addEventListener("click", () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      draw(figure, at);
    });
  });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
matchMedia("print").addEventListener("change", drawAll);
drawAll().then(() => document.body.setAttribute("data-drawn", "true"));
