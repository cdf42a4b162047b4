// Filters the samples of the report. Everything else on the page works without this script.
"use strict";
(() => {
  const form = document.getElementById("filter");
  const samples = [...document.querySelectorAll(".sample")];
  if (!form || !samples.length) return;
  const fields = ["run", "task", "category", "language", "verdict"].filter((name) => form.elements[name]);
  const texts = new Map();
  const textOf = (sample) => {
    if (!texts.has(sample)) texts.set(sample, sample.textContent.toLowerCase());
    return texts.get(sample);
  };
  const apply = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const sample of samples) {
      const fits = fields.every((name) => !form.elements[name].value || sample.dataset[name] === form.elements[name].value);
      sample.hidden = !(fits && words.every((word) => textOf(sample).includes(word)));
      shown += sample.hidden ? 0 : 1;
    }
    document.getElementById("count").textContent = `${shown} of ${samples.length} rows on this page`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
})();
