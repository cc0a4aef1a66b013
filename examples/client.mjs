// Ask a running server about images, with fetch (Node.js 18 or newer; the same calls work in a browser).
//
//     node examples/client.mjs tests/samples/seven.png tests/samples/cat.png
//
// ODDIGIT_URL names another server than http://127.0.0.1:8000, and ODDIGIT_KEY its API key.
import { readFile, writeFile } from "node:fs/promises";
import { basename, parse } from "node:path";

const url = process.env.ODDIGIT_URL ?? "http://127.0.0.1:8000";
const headers = process.env.ODDIGIT_KEY ? { "X-API-Key": process.env.ODDIGIT_KEY } : {};

// Send image files as one form and return the results, one an image, in the order of the files.
async function ask(endpoint, images) {
  const form = new FormData();
  for (const image of images) form.append("file", new Blob([await readFile(image)]), basename(image));
  const response = await fetch(url + endpoint, { method: "POST", headers, body: form }).catch((error) => {
    throw new Error(`${url} does not answer: ${error.cause?.message ?? error.message}`);
  });
  const answer = await response.json().catch(() => ({ title: response.statusText, detail: "the response is not JSON." }));
  if (!answer.results) throw new Error(`${response.status} ${answer.title}: ${answer.detail}`); // RFC 9457
  return answer.results;
}

function stop(message) {
  console.error(message);
  process.exit(1);
}

const images = process.argv.slice(2);
if (!images.length) stop("Usage: node examples/client.mjs IMAGE...");
const [scores, embeddings, reconstructions] = await Promise.all(
  ["/score", "/embed", "/reconstruct"].map((endpoint) => ask(endpoint, images)),
).catch((error) => stop(error.message));

for (const [index, score] of scores.entries()) {
  if (score.error) {
    console.log(`${score.name}: ${score.error.detail}`); // one image that cannot be decoded fails alone
    continue;
  }
  const verdict = score.is_anomaly ? "anomaly" : "digit";
  console.log(`${score.name}: ${verdict}, score ${score.score.toFixed(2)}, p-value ${score.p_value.toFixed(4)}`);

  const embedding = embeddings[index].embedding.map((value) => value.toFixed(2));
  console.log(`  embedding: (${embedding.join(", ")})`);

  const picture = `${parse(score.name).name}-reconstruction.png`;
  await writeFile(picture, Buffer.from(reconstructions[index].reconstruction, "base64"));
  console.log(`  reconstruction: ${picture}`);
}
