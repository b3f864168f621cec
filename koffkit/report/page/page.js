// Draws the charts in the colours of the style sheet, and again when light and dark change.
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue("--" + name).trim();
  };
  const coloured = (value, colour) => {
    if (typeof value === "string" && value.startsWith("@")) return colour(value.slice(1));
    if (Array.isArray(value)) return value.map((part) => coloured(part, colour));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, part]) =>
        [key, key === "values" ? part : coloured(part, colour)]));
    }
    return value;
  };
  const NARROW = 520;  // pixels, below which the entries of a legend stand below each other
  const config = (colour, width) => ({
    background: null,
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    axis: {
      labelColor: colour("soft"), titleColor: colour("soft"), gridColor: colour("line"),
      domain: false, tickColor: colour("line"), labelFontSize: 12, titleFontSize: 12,
      titleFontWeight: "normal", titlePadding: 10, labelPadding: 6,
    },
    axisY: { labelLimit: 150 },
    legend: {
      labelColor: colour("ink"), titleColor: colour("soft"), labelFontSize: 12, titleFontSize: 12,
      titleFontWeight: "normal", columns: width < NARROW ? 1 : undefined, symbolStrokeWidth: 2, columnPadding: 18, offset: 12,
    },
  });
  const options = { actions: false, renderer: "svg", ast: true, mode: "vega-lite" };
  const drawn = [];
  const draw = async () => {
    const colour = colours();
    for (const view of drawn.splice(0)) view.finalize();
    for (const [place, spec] of Object.entries(specs)) {
      const target = document.getElementById(place);
      if (!target) continue;
      try {
        const theme = config(colour, target.clientWidth);
        drawn.push(await vegaEmbed(target, { ...coloured(spec, colour), config: theme }, options));
      } catch (error) {
        target.textContent = "This chart could not be drawn: " + error.message;
        target.classList.add("failed");
      }
    }
    document.documentElement.dataset.drawn = String(drawn.length);
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
