// What ipywidgets has no word for. Runs where `this`, an element of a panel, joins the page.
const panel = this.closest(".course-panel");
const FIELDS = ".noUi-handle, .widget-readout, input:not([type=checkbox])";

// Screen readers learn what a slider's handle or a field sets, and what a picture shows: its line
// of the caption. ipywidgets puts the parts of a panel into the page one after the other, and the
// caption changes with the picture.
function tell() {
  for (const part of panel.querySelectorAll(FIELDS)) {
    const label = part.closest(".jupyter-widgets").querySelector(".widget-label");
    const name = label?.textContent || label?.title;
    if (name) part.setAttribute("aria-label", name);
  }
  const lines = panel.querySelectorAll(".course-caption p");
  panel.querySelectorAll("img").forEach((picture, i) => {
    picture.alt = lines[i]?.textContent ?? "";
  });
}
new MutationObserver(tell).observe(panel, { childList: true, subtree: true });
tell();

// JupyterLab takes the keys that a list or a box leaves: "d d" would delete the cell. In a panel it
// gets those that run a cell or are pressed with Ctrl, Alt or ⌘. It looks for the attribute first
// where the focus is, and takes what finds the focus there.
if (!window.coursePanels) {
  window.coursePanels = true;
  const runs = (event) => event.shiftKey && event.key === "Enter";
  const forTheNotebook = (event) =>
    event.ctrlKey || event.altKey || event.metaKey || runs(event);
  const decide = (event) => {
    if (event.target.closest?.(".course-panel"))
      event.target.toggleAttribute("data-lm-suppress-shortcuts", !forTheNotebook(event));
  };
  window.addEventListener("keydown", decide, true); // before JupyterLab hears of it
}
