// Small mends of the theme for keyboards and screen readers.
document.addEventListener("DOMContentLoaded", () => {
  // Whatever scrolls must be reachable from the keyboard.
  const boxes =
    ".pst-scrollable-table-container, div.highlight pre, .cell_output .output, " +
    ".medlm-wide-figure, div.math";
  const open = () => {
    for (const box of document.querySelectorAll(boxes)) {
      if (box.scrollWidth > box.clientWidth && box.tabIndex < 0) box.tabIndex = 0;
    }
  };
  open();
  // A formula that is too wide gets smaller, as far as it stays legible; then it scrolls.
  const shrink = () => {
    for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
      const fits = formula.clientWidth / formula.scrollWidth;
      if (formula.clientWidth === 0 || fits >= 1) continue;
      const size = parseFloat(getComputedStyle(formula).fontSize);
      formula.style.fontSize = `${Math.max(12, Math.floor(size * fits * 10) / 10)}px`;
    }
  };
  window.addEventListener("load", () => {
    open(); // images have their width by now
    window.MathJax?.startup?.promise?.then(shrink);
  });
});
