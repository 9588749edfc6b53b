// vecdb from TypeScript: the proto, @grpc/grpc-js and @grpc/proto-loader, and nothing of ours.
//
//     npm ci && npm run demo                                    against 127.0.0.1:7700
//     VECDB_SERVER=host:port VECDB_API_KEY=... VECDB_TLS_CA=ca.pem npm run demo

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import * as grpc from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";

const proto =
  process.env.VECDB_PROTO ??
  fileURLToPath(new URL("../../../proto/vecdb/v1/vecdb.proto", import.meta.url));
const definition = protoLoader.loadSync(proto, { longs: Number, enums: String, defaults: true });
const loaded = grpc.loadPackageDefinition(definition) as any;

const target = process.env.VECDB_SERVER ?? "127.0.0.1:7700";
const ca = process.env.VECDB_TLS_CA;
const channel = ca
  ? grpc.credentials.createSsl(readFileSync(ca))
  : grpc.credentials.createInsecure();
const service = new loaded.vecdb.v1.VecdbService(target, channel);

const metadata = new grpc.Metadata();
if (process.env.VECDB_API_KEY) {
  metadata.set("authorization", `Bearer ${process.env.VECDB_API_KEY}`);
}

// What kind of failure it is stands in the trailing metadata, as JSON with a stable reason.
function reasonOf(error: grpc.ServiceError): string {
  const [entry] = error.metadata.get("vecdb-error-bin");
  return entry ? JSON.parse(entry.toString()).reason : (grpc.status[error.code] as string);
}

function call(method: string, request: object): Promise<any> {
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + 30_000 };
    service[method](request, metadata, options, (error: grpc.ServiceError | null, answer: any) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

// Vectors travel as little-endian numbers, row after row, in one field.
function vectors(rows: number[][]): object {
  const data = Buffer.alloc(4 * rows.length * rows[0].length);
  rows.flat().forEach((number, i) => data.writeFloatLE(number, 4 * i));
  return { data, count: rows.length, dimension: rows[0].length };
}

const name = `typescript-${randomUUID()}`;
await call("CreateCollection", { collection: { name, dimension: 4 } });
try {
  const insert = {
    collection: name,
    records: {
      ids: ["tea", "rain", "moss"],
      vectors: vectors([
        [1, 0, 0, 0],
        [0, 1, 0, 1],
        [0, 1, 1, 1],
      ]),
      metadata: [{ year: 2024 }, { year: 2020 }, { year: 2023 }].map((m) =>
        Buffer.from(JSON.stringify(m)),
      ),
      documents: { values: ["a cup of tea", "rain on the roof", "moss on the stone"] },
    },
    // A repetition with the same id is answered alike and not done again.
    requestId: randomUUID(),
  };
  const written = await call("Insert", insert);
  const again = await call("Insert", insert);
  console.log("inserted", written.count, "repeated", again.sequence === written.sequence);

  const found = await call("Query", {
    collection: name,
    vectors: vectors([[0, 1, 0.9, 1]]),
    k: 2,
    filter: JSON.stringify({ year: { $gte: 2020 } }),
    include: ["INCLUDE_DOCUMENT"],
  });
  for (let i = 0; i < found.counts[0]; i++) {
    const distance = found.distances.readFloatLE(4 * i).toFixed(3);
    console.log(found.hits.ids[i], distance, found.hits.documents.values[i]);
  }

  let scanned = 0;
  for await (const page of service.Scan({ collection: name, batchSize: 2 }, metadata)) {
    scanned += page.records.ids.length;
  }
  console.log("scanned", scanned);

  await call("Insert", { ...insert, requestId: randomUUID() }).catch((error) =>
    console.log("refused", reasonOf(error)),
  );
} finally {
  await call("DropCollection", { name });
  service.close();
}
