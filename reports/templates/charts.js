"use strict";
// Draws the page's charts in its colors, and again whenever these, or the data, change.
(() => {
  let charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const fixed = document.getElementById("plotly.js-style-global") !== null; // styles come from a file: none may be added
    for (const { name, traces, layout } of charts) {
      const place = document.getElementById(`chart-${name}`);
      if (!place) continue;
      const narrow = window.innerWidth < 600;
      const whole = {
        ...layout,
        font: { color: ink, family: "inherit", size: narrow ? 11 : 13 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 10, r: 10, t: 10, b: 10 },
        modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)" },
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        xaxis: { ...axis, ...layout.xaxis },
        yaxis: { ...axis, ...layout.yaxis },
        uirevision: name,
      };
      Plotly.react(place, traces, whole, { responsive: true, displaylogo: false, displayModeBar: narrow || fixed ? false : "hover" });
    }
  };
  draw();
  dark.addEventListener("change", draw);
  document.addEventListener("farshore-charts", (event) => {
    charts = event.detail;
    draw();
  });
})();
