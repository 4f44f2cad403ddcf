// Draws the diagrams of a page in the colours of its theme, and again when the reader changes it.
(() => {
  "use strict";
  const diagrams = [...document.querySelectorAll("pre.mermaid")].map((place) => ({ place, text: place.textContent }));
  const system = matchMedia("(prefers-color-scheme: dark)");
  const LEAST_SCALE = 0.7; // narrower than that, it scrolls: its text is to be read
  let drawn = null;
  let number = 0;

  const theme = () => {
    const chosen = document.body.dataset.theme;
    return chosen === "dark" || (chosen !== "light" && system.matches) ? "dark" : "default";
  };

  const draw = async () => {
    const wanted = theme();
    if (wanted === drawn) {
      return;
    }
    drawn = wanted;
    const ground = getComputedStyle(document.body).getPropertyValue("--color-background-primary").trim();
    mermaid.initialize({
      startOnLoad: false,
      suppressErrorRendering: true,
      theme: wanted,
      themeVariables: { edgeLabelBackground: ground },
      securityLevel: "strict",
    });
    for (const { place, text } of diagrams) {
      try {
        const { svg } = await mermaid.render(`diagram-${++number}`, text);
        if (drawn !== wanted) {
          return; // changed again meanwhile
        }
        place.innerHTML = svg;
        const drawing = place.firstElementChild;
        drawing.style.minWidth = `${LEAST_SCALE * drawing.viewBox.baseVal.width}px`;
        place.dataset.drawn = wanted;
      } catch (error) {
        place.dataset.failed = error.message;
        console.error(`a diagram cannot be drawn: ${error.message}`);
      }
    }
  };

  new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-theme"] });
  system.addEventListener("change", draw);
  draw();
})();
