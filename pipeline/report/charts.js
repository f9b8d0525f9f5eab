/* Draw the charts with Vega, the first at once and the others when the browser is idle. */
(() => {
  const specs = JSON.parse(document.getElementById("chart-data").textContent);
  const tip = document.getElementById("tip");
  const tell = (handler, event, item, value) => {
    const told = value === null || value === undefined || value === "" ? null : value;
    tip.hidden = told === null;
    if (told === null) return;
    tip.textContent = typeof told === "object"
      ? Object.entries(told).map(([name, text]) => `${name}: ${text}`).join("\n")
      : String(told);
    tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 6)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 6)}px`;
  };
  const places = [...document.querySelectorAll("[data-chart]")];
  const draw = async (place) => {
    await vegaEmbed(place, specs[place.dataset.chart], { renderer: "svg", actions: false, tooltip: tell });
    place.dataset.drawn = "yes";
  };
  const later = window.requestIdleCallback ?? ((call) => setTimeout(call, 1));
  const next = () => {
    const place = places.shift();
    if (place) draw(place).then(() => later(next));
  };
  next();
  addEventListener("beforeprint", () => { for (const place of places.splice(0)) draw(place); });
})();
