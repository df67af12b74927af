"use strict";
(() => {
  // The theme: what the system asks for, until the button is pressed; kept for this page as long as it is open.
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  // The words of what is pointed at or focused.
  const tip = document.getElementById("tip");
  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x - box.width / 2), window.innerWidth - box.width - 8);
    const above = y - box.height - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 8 ? above : y + 18}px`;
  };
  const show = (target, x, y) => {
    tip.textContent = target.dataset.tip.split(" · ").join("\n");
    tip.classList.add("shown");
    place(x, y);
  };
  const hide = () => tip.classList.remove("shown");
  const owner = (event) => event.target instanceof Element && event.target.closest("[data-tip]");
  document.addEventListener("pointermove", (event) => {
    const target = owner(event);
    if (target) show(target, event.clientX, event.clientY);
    else if (!document.activeElement || !document.activeElement.matches("[data-tip]")) hide();
  });
  document.addEventListener("focusin", (event) => {
    const target = owner(event);
    if (!target) return hide();
    const box = target.getBoundingClientRect();
    show(target, box.left + box.width / 2, box.top);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
})();
