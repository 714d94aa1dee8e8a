// Draws the interactive fronts of a page. Where that cannot be, the still picture stays.
const fronts = [...document.querySelectorAll(".front")];

function colours() {
  const style = getComputedStyle(document.body);
  const text = style.getPropertyValue("--md-typeset-color"), grid = style.getPropertyValue("--md-default-fg-color--lightest");
  return { "font.color": text, "xaxis.gridcolor": grid, "yaxis.gridcolor": grid, "xaxis.linecolor": grid };
}

async function draw(front) {
  const chart = await (await fetch(front.dataset.chart)).json();
  front.classList.add("drawn");
  await Plotly.newPlot(front, chart.data, chart.layout, { displayModeBar: false });
  await Plotly.relayout(front, colours());
  new ResizeObserver(() => Plotly.Plots.resize(front)).observe(front);
}

if (fronts.length) {
  const library = document.createElement("script");
  library.src = fronts[0].dataset.library;
  library.onload = () => fronts.forEach(draw);
  document.head.append(library);
  const again = () => fronts.filter((front) => front.classList.contains("drawn")).forEach((front) => Plotly.relayout(front, colours()));
  new MutationObserver(again).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
}
