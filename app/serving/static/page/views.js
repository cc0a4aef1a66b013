// The views of the page, chosen by the address: #draw, #files, #monitor, #model. The last three load when they are opened.
import { $ } from "./dom.js";

const LOADERS = { files: () => import("./files.js"), monitor: () => import("./monitor.js"), model: () => import("./model.js") };
const opened = {};

// `actions.openFile` shows one file on the paper.
export function startViews(actions) {
  addEventListener("hashchange", () => show(actions));
  listenForFiles(actions);
  show(actions);
}

async function show(actions) {
  const hash = location.hash.slice(1).split("=")[0], name = hash in LOADERS ? hash : "draw";
  for (const view of ["draw", ...Object.keys(LOADERS)]) $(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const [other, view] of Object.entries(opened)) if (other !== name) (await view).leave?.();
  if (name !== "draw") (await open(name, actions)).enter?.();
}

function open(name, actions) {
  const view = $(`view-${name}`);
  opened[name] ??= LOADERS[name]().then(({ start }) => start(view, actions), () => {
    view.textContent = "This view could not be loaded. Reload the page.";  // browsers do not import again what failed
    return {};
  });
  return opened[name];
}

// One image is shown on the paper, several in the list of files.
async function takeFiles(files, actions) {
  if (files.length === 1 && $("view-files").hidden) {
    location.hash = "draw";
    actions.openFile(files[0]);
  } else if (files.length) {
    location.hash = "files";
    (await open("files", actions)).add?.(files);
  }
}

function listenForFiles(actions) {
  $("file").addEventListener("change", (event) => {
    takeFiles([...event.target.files], actions);
    event.target.value = "";
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    takeFiles([...event.dataTransfer.files], actions);
  });
  document.addEventListener("paste", (event) => takeFiles([...event.clipboardData.files], actions));
}
