// Calls every operation with the types that openapi-typescript generates; prints the id of each that succeeded.
import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const [baseUrl, sample] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl });
const picture = new Blob([await readFile(sample)], { type: "image/png" });

const form = () => {
  const data = new FormData();
  data.append("file", picture, "sample.png");
  return data;
};
const upload = { body: { file: [] as string[] }, bodySerializer: form };  // the types of binary parts are strings

const model = (await client.GET("/model")).data!;
const report = Object.keys(model.files).find((name) => name.endsWith(".png"))!.replace("report/", "");
const byName = { params: { path: { model: model.name } } };
const byVersion = { params: { path: { model: model.name, version: String(model.version) } } };
const body: components["schemas"]["InferRequest"] = {
  inputs: [{ name: "images", shape: [1, 784], datatype: "UINT8", data: Array(784).fill(0) }],
};

type Result = { data?: unknown; error?: unknown; response: Response };
const calls: Record<string, () => Promise<Result>> = {
  score: () => client.POST("/score", { ...upload, params: { query: { alpha: 0.05, preprocess: "digit" } } }),
  embed: () => client.POST("/embed", upload),
  reconstruct: () => client.POST("/reconstruct", upload),
  inspect: () => client.POST("/inspect", upload),
  decode: () => client.POST("/decode", { body: { embedding: [[0.5, -1]] } }),
  get_models: () => client.GET("/models"),
  get_model: () => client.GET("/model"),
  get_report_picture: () => client.GET("/model/report/{picture}", { params: { path: { picture: report } }, parseAs: "blob" }),
  get_calibration: () => client.GET("/model/calibration"),
  get_latent: () => client.GET("/latent"),
  get_liveness: () => client.GET("/livez"),
  get_readiness: () => client.GET("/readyz"),
  get_metrics: () => client.GET("/metrics", { parseAs: "text" }),
  get_drift: () => client.GET("/drift"),
  get_problem_type: () => client.GET("/problems/{type}", { params: { path: { type: "too-large" } }, parseAs: "text" }),
  v2_server_metadata: () => client.GET("/v2"),
  v2_server_live: () => client.GET("/v2/health/live"),
  v2_server_ready: () => client.GET("/v2/health/ready"),
  v2_model_metadata: () => client.GET("/v2/models/{model}", byName),
  v2_version_metadata: () => client.GET("/v2/models/{model}/versions/{version}", byVersion),
  v2_repository_index: () => client.POST("/v2/repository/index"),
  v2_model_config: () => client.GET("/v2/models/{model}/config", byName),
  v2_version_config: () => client.GET("/v2/models/{model}/versions/{version}/config", byVersion),
  v2_model_ready: () => client.GET("/v2/models/{model}/ready", byName),
  v2_version_ready: () => client.GET("/v2/models/{model}/versions/{version}/ready", byVersion),
  v2_model_infer: () => client.POST("/v2/models/{model}/infer", { ...byName, body }),
  v2_version_infer: () => client.POST("/v2/models/{model}/versions/{version}/infer", { ...byVersion, body }),
};

for (const [id, call] of Object.entries(calls)) {
  const { data, error, response } = await call();
  if (!response.ok || data === undefined) throw new Error(`${id}: ${response.status} ${JSON.stringify(error)}`);
  console.log(id);
}
