// Every formula of the page, from the LaTeX that Sphinx left in it.
document.addEventListener("DOMContentLoaded", () => {
  // one that is wider than its box scrolls, and for that the keyboard has to reach it
  const widths = new ResizeObserver((entries) => {
    for (const { target } of entries) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
  });
  for (const element of document.querySelectorAll(".math")) {
    const displayMode = element.tagName === "DIV";
    katex.render(element.textContent, element, { displayMode, throwOnError: false });
    if (displayMode) widths.observe(element);
  }
});
