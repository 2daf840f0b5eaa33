"use strict";
// Draws the charts in the page's colors; redraws them when the color scheme or the data change.
(() => {
  let charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    // The dashboard's policy forbids added styles, which the mode bar needs; there, Plotly's style sheet is a file.
    const noStyles = document.getElementById("plotly.js-style-global") !== null;
    for (const { name, traces, layout } of charts) {
      const element = document.getElementById(`chart-${name}`);
      if (!element) continue;
      const narrow = window.innerWidth < 600;
      const fullLayout = {
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
      Plotly.react(element, traces, fullLayout, { responsive: true, displaylogo: false, displayModeBar: narrow || noStyles ? false : "hover" });
    }
  };
  draw();
  dark.addEventListener("change", draw);
  document.addEventListener("farshore-charts", (event) => {
    charts = event.detail;
    draw();
  });
})();
