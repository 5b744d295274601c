// Small mends of the theme for keyboards and screen readers.
document.addEventListener("DOMContentLoaded", () => {
  // Whatever scrolls must be reachable from the keyboard.
  for (const box of document.querySelectorAll(
    ".pst-scrollable-table-container, div.highlight pre, .cell_output .output, div.math",
  )) {
    if (box.scrollWidth > box.clientWidth && box.tabIndex < 0) box.tabIndex = 0;
  }
});
