// Runs the search worker of a built site: node search.js SITE < queries (JSON list) > results (JSON list of lists).
"use strict";
const fs = require("fs"), path = require("path"), vm = require("vm");

const site = process.argv[2];
const workers = path.join(site, "assets", "javascripts", "workers");
const script = fs.readdirSync(workers).find((name) => /^search\..*\.js$/.test(name));
const index = JSON.parse(fs.readFileSync(path.join(site, "search", "search_index.json"), "utf8"));
const queries = JSON.parse(fs.readFileSync(0, "utf8"));

let receive, resolve;
globalThis.self = globalThis;
globalThis.addEventListener = (_, listener) => (receive = listener);
globalThis.postMessage = (message) => resolve(message);
vm.runInThisContext(fs.readFileSync(path.join(workers, script), "utf8"));

const send = (type, data) => new Promise((done) => ((resolve = done), receive({ data: { type, data } })));
const pages = (items) => items.map((found) => found[0].location.split("#")[0]);

(async () => {
  await send(0, { config: index.config, docs: index.docs, options: { suggest: false } });
  const results = [];
  for (const query of queries) results.push(pages((await send(2, query)).data.items));
  process.stdout.write(JSON.stringify(results));
})();
