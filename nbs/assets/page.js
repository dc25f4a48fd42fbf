// What a page needs for readers without a mouse.
(() => {
  "use strict";

  const overflows = (box) => box.scrollWidth > box.clientWidth + 3; // KaTeX spills 2 px

  // What scrolls sideways must be reachable by keyboard, and what does not should not stop it.
  const KINDS = {
    "pre": "code", ".math.display": "formula", ".sd-table": "table", ".cell-output-display": "output",
  };
  const update = () => {
    for (const formula of document.querySelectorAll(".math.display")) {
      formula.classList.remove("wide");
      formula.classList.toggle("wide", overflows(formula));
    }
    for (const [selector, kind] of Object.entries(KINDS)) {
      for (const box of document.querySelectorAll(selector)) {
        if (overflows(box)) {
          box.tabIndex = 0;
          box.setAttribute("role", "group");
          box.setAttribute("aria-label", `${kind}, scrolls sideways`);
        } else {
          for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
        }
      }
    }
  };
  update();
  window.addEventListener("load", update); // by then the letters are there
  window.addEventListener("resize", update);
  document.addEventListener("toggle", update, true); // a <details> opened

  // The button that opens the list of chapters on a narrow screen says whether it is open.
  const button = document.querySelector(".quarto-btn-toggle");
  const sidebar = document.getElementById("quarto-sidebar");
  if (button && sidebar) {
    const say = () => button.setAttribute("aria-expanded", sidebar.classList.contains("show"));
    new MutationObserver(say).observe(sidebar, { attributes: true, attributeFilter: ["class"] });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !sidebar.classList.contains("show")) return;
      button.click();
      button.focus();
    });
    say();
  }
})();
