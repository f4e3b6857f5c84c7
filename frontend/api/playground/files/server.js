// The side view of the server: asks for its load every second while the page is seen, and draws it.

import { json } from "./api.js";
import { byId, element } from "./dom.js";
import { ExpertMap } from "./experts.js";

const POLL_MS = 1000;
const EXPERTS_EVERY = 2;  // polls
const HISTORY = 60;
const percent = (share) => `${Math.round(share * 100)} %`;
const grouped = (number) => number.toLocaleString("en");

// Name, share from 0 to 1, and what stands beside it.
const METERS = [
  ["Running", (load, info) => load.running_requests / Math.max(info.max_running_requests, 1),
    (load, info) => `${load.running_requests} of ${info.max_running_requests}`],
  ["Queued", (load, info) => load.queued_requests / Math.max(info.max_queued_requests, 1),
    (load) => `${load.queued_requests}; ${grouped(load.queued_prompt_tokens)} tokens to compute`],
  ["KV cache", (load) => load.kv_cache_usage,
    (load, info) => `${percent(load.kv_cache_usage)} of ${grouped(info.kv_cache_tokens)} tokens`],
  ["Device busy", (load) => load.device_busy, (load) => percent(load.device_busy)],
  ["Hardware floor, decode", (load) => load.decode_floor_share,
    (load, info) => floor(load.decode_floor_share, info)],
  ["Hardware floor, all", (load) => load.floor_share, (load, info) => floor(load.floor_share, info)],
];

// The share of the time taken that the hardware would have needed at least.
const floor = (share, info) => (info.bytes_per_second ? percent(share) : "not known here");

export function startServer(model) {
  const bars = METERS.map(([name]) => meter(name)), speeds = [];
  const experts = new ExpertMap();
  let info = null, started = null, numPolls = 0;

  async function poll() {
    if (!document.hidden) {
      try {
        const load = await json("load");
        if (info === null || load.worker_restarts !== started) {
          info = await json("server_info");
          started = load.worker_restarts;
          showFacts(model, info);
        }
        show(load);
        const isDue = numPolls++ % EXPERTS_EVERY === 0 && !byId("server").hidden;
        if (isDue && !load.restarting) experts.take(await json("expert_load"));
      } catch (error) {
        showState("lost", error.message);
      }
    }
    setTimeout(poll, POLL_MS);
  }

  function show(load) {
    showState(load.restarting ? "waiting" : "ready", load.restarting ? "workers restarting" : model);
    METERS.forEach(([, share, detail], index) => bars[index](share(load, info), detail(load, info)));
    const speed = load.generated_tokens_per_second;
    byId("speed").textContent = speed < 10 ? speed.toFixed(1) : grouped(Math.round(speed));
    speeds.push(speed);
    if (speeds.length > HISTORY) speeds.shift();
    drawHistory(speeds);
  }

  poll();
}

export function showState(state, text) {
  byId("state").dataset.state = state;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
}

function showFacts(model, info) {
  const layout = [`tp ${info.tensor_parallel_size}`, `dp ${info.data_parallel_size}`];
  if (info.expert_parallel_size > 1) {
    layout.push(`ep ${info.expert_parallel_size}`, info.moe_ep_backend);
  }
  const facts = [`${info.world_size} × ${info.device}`, info.dtype, layout.join(" "), info.version];
  byId("facts").textContent = facts.join(" · ");
}

// Adds a bar; returns what sets it.
function meter(name) {
  const fill = element("div"), bar = element("div", { className: "bar" }, fill);
  const text = element("span"), title = element("p", {}, element("span", { textContent: name }), text);
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-label", name);
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  byId("meters").append(element("div", { className: "meter" }, title, bar));
  return (share, detail) => {
    const width = Math.max(0, Math.min(share, 1)) * 100;
    fill.style.width = `${width}%`;
    bar.setAttribute("aria-valuenow", width.toFixed(0));
    bar.setAttribute("aria-valuetext", detail);
    text.textContent = detail;
  };
}

function drawHistory(speeds) {
  const most = Math.max(...speeds, 1);
  const points = speeds.map((speed, at) => {
    const x = HISTORY - speeds.length + at;
    return `${x},${(19 - (speed / most) * 18).toFixed(2)}`;
  });
  byId("history").firstElementChild.setAttribute("points", points.join(" "));
}
