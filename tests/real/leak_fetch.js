// A program that knows nothing of proxies: node leak_fetch.js HOW HOST PORT
const dns = require("dns"), http = require("http");
const [how, host, port] = process.argv.slice(2);

function fetch(address) {
  http.get({ host: address, port, path: "/1000", headers: { Host: host } }, (answer) => {
    let size = 0;
    answer.on("data", (data) => { size += data.length; });
    answer.on("end", () => { if (size !== 1000) process.exitCode = 3; });
  });
}

if (how === "http") for (let i = 0; i < 10; i++) fetch(host);
else dns.resolve4(host, (error, addresses) => { if (error) throw error; fetch(addresses[0]); });
