// The API page: shows openapi.json as a list of operations, each with a form that sends it. Loads nothing from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const METHODS = ["get", "post"];
let spec = null;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function resolve(schema) {
  if (!schema || !schema.$ref) return schema || {};
  return schema.$ref.slice(2).split("/").reduce((node, step) => node[step], spec);
}

// An example value for a schema: its own example, else one that is built from its type.
function example(schema, depth = 0) {
  const known = resolve(schema);
  if (known.examples) return known.examples[0];
  if (known.default !== undefined) return known.default;
  if (known.const !== undefined) return known.const;
  if (known.enum) return known.enum[0];
  const choice = known.anyOf || known.oneOf;
  if (choice) return example(choice[0], depth + 1);
  if (known.type === "object") {
    const entries = depth > 6 ? [] : Object.entries(known.properties || {});
    return Object.fromEntries(entries.map(([name, part]) => [name, example(part, depth + 1)]));
  }
  if (known.type === "array") return [example(known.items, depth + 1)];
  return { integer: known.minimum || 1, number: 0.5, boolean: true, null: null, string: "text" }[known.type] ?? null;
}

const pretty = (value) => JSON.stringify(value, null, 2);

function field(label, help, control) {
  return element("label", { className: "field" }, label, help ? element("small", {}, help) : "", control);
}

function parameterControl(parameter) {
  const { schema } = parameter;
  if (!schema.enum) return element("input", { placeholder: parameter.required ? "required" : "" });
  return element("select", {}, ...["", ...schema.enum].map((value) => element("option", { value }, value)));
}

// The controls of a request body: its media type, and a text or files for its content.
function bodyControls(requestBody, container) {
  const types = Object.keys(requestBody.content);
  const select = element("select", {}, ...types.map((value) => element("option", { value }, value)));
  const holder = element("div");
  const showContent = () => {
    const media = requestBody.content[select.value];
    if (select.value === "application/json") {
      holder.replaceChildren(element("textarea", { value: pretty(example(media.schema)), ariaLabel: "JSON body" }));
    } else {
      const multiple = select.value === "multipart/form-data";
      holder.replaceChildren(element("input", { type: "file", multiple, ariaLabel: "file" }));
    }
  };
  select.addEventListener("change", showContent);
  showContent();
  container.append(field("Body", "", select), holder);
  return () => ({ type: select.value, text: holder.querySelector("textarea")?.value, files: [...(holder.querySelector("input")?.files || [])] });
}

function requestBody(body, headers) {
  if (!body) return undefined;
  if (body.type === "multipart/form-data") {
    const form = new FormData();
    for (const file of body.files) form.append("file", file, file.name);
    return form;  // the browser writes the content type with its boundary
  }
  headers["Content-Type"] = body.type;
  return body.text ?? body.files[0];
}

function requestUrl(path, controls) {
  const query = new URLSearchParams();
  for (const { parameter, control } of controls) {
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(control.value));
    else if (control.value) query.set(parameter.name, control.value);
  }
  const text = query.toString();
  return new URL(path.slice(1) + (text ? `?${text}` : ""), new URL(".", location.href)).href;
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(method, url, body) {
  const parts = ["curl", method === "post" ? "-X POST" : "", quote(url)];
  if ($("key").value) parts.push("-H 'X-API-Key: YOUR-KEY'");
  if (body && body.type === "multipart/form-data") {
    parts.push(...(body.files.length ? body.files.map((file) => file.name) : ["FILE"]).map((name) => `-F ${quote(`file=@${name}`)}`));
  } else if (body) {
    parts.push(`-H ${quote(`Content-Type: ${body.type}`)}`);
    parts.push(body.text === undefined ? `--data-binary ${quote(`@${body.files[0]?.name || "FILE"}`)}` : `-d ${quote(body.text)}`);
  }
  return parts.filter(Boolean).join(" ");
}

async function showResponse(response, result) {
  const type = response.headers.get("content-type") || "";
  const status = element("p", { className: "status" }, `${response.status} ${response.statusText} · ${type}`);
  if (type === "image/png") {
    const image = element("img", { alt: "the picture in the response" });
    image.src = await dataUrl(await response.blob());
    result.replaceChildren(status, image);
    return;
  }
  const text = await response.text();
  const shown = type.includes("json") ? pretty(JSON.parse(text)) : text;
  const limit = 100000;
  result.replaceChildren(status, element("pre", {}, shown.length > limit ? `${shown.slice(0, limit)}\n…` : shown));
}

function dataUrl(blob) {
  return new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
}

function form(method, path, operation) {
  const container = element("div");
  const controls = (operation.parameters || []).map((parameter) => {
    const control = parameterControl(parameter);
    container.append(field(`${parameter.name} (${parameter.in})`, parameter.description, control));
    return { parameter, control };
  });
  const body = operation.requestBody ? bodyControls(operation.requestBody, container) : () => undefined;
  const command = element("pre", { className: "curl" });
  const result = element("div", { className: "result" });
  const update = () => command.replaceChildren(curl(method, requestUrl(path, controls), body()));
  container.addEventListener("input", update);
  const send = element("button", { type: "button" }, "Send");
  send.addEventListener("click", async () => {
    const headers = $("key").value ? { "X-API-Key": $("key").value } : {};
    const content = requestBody(body(), headers);
    try {
      await showResponse(await fetch(requestUrl(path, controls), { method: method.toUpperCase(), headers, body: content }), result);
    } catch (error) {
      result.replaceChildren(element("p", {}, error.message));
    }
  });
  update();
  container.append(command, send, result);
  return container;
}

function responseList(operation) {
  return Object.entries(operation.responses).map(([status, response]) => {
    const content = Object.entries(response.content || {});
    const types = content.map(([type]) => type).join(", ");
    const schema = response.content?.["application/json"]?.schema;
    const line = element("p", {}, `${status} ${response.description} · ${types}`);
    return schema && status === "200" ? [line, element("pre", {}, pretty(example(schema)))] : [line];
  }).flat();
}

function operationView(method, path, operation) {
  const summary = element("summary", {}, element("code", {}, `${method.toUpperCase()} ${path}`), " ", element("span", {}, operation.description || operation.summary || ""));
  const view = element("details", { id: operation.operationId }, summary);
  view.addEventListener("toggle", () => {
    if (!view.open || view.children.length > 1) return;
    view.append(element("div", { className: "body" }, form(method, path, operation), element("h3", {}, "Responses"), ...responseList(operation)));
  });
  return view;
}

function show() {
  $("title").textContent = `${spec.info.title} ${spec.info.version}`;
  $("description").textContent = spec.info.description;
  const groups = new Map();
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const method of METHODS.filter((name) => item[name])) {
      const tag = item[method].tags?.[0] || "other";
      groups.set(tag, [...(groups.get(tag) || []), operationView(method, path, item[method])]);
    }
  }
  $("operations").replaceChildren(...[...groups].flatMap(([tag, views]) => [element("h2", {}, tag), ...views]));
}

const load = () => tryToLoad().catch((error) => {
  $("operations").replaceChildren(element("p", {}, `The description of the API could not be loaded: ${error.message}. Reload this page.`));
});

async function tryToLoad() {
  const headers = $("key").value ? { "X-API-Key": $("key").value } : {};
  const response = await fetch("openapi.json", { headers });
  if (!response.ok) {
    $("operations").replaceChildren(element("p", {}, (await response.json()).detail));
    return;
  }
  spec = await response.json();
  show();
}

$("key").addEventListener("change", () => { if (!spec) load(); });
load();
