/* The facts of each model on the page that says what the score means. */

import { byId, chooseTheme, fact, fixed, make, tell, whole } from "./pieces.js";
import { ask, Lost } from "./service.js";

const STARS_OF = { percentile: "percentile", folder_percentile: "folder percentile", score: "score" };

function panelOf(model, first) {
  const { values, stars, checked } = model, own = model.kind === "taste";
  return make("div", { class: "panel" },
    make("h3", {}, make("bdi", { text: model.name }), make("span", {
      class: "soft", text: own ? " a taste" : first ? " the default" : ""
    })),
    make("p", { class: "soft", text: model.introduction.replaceAll("`", "") }),
    make("dl", { class: "details" },
      fact("Scale", `${values[0]} to ${values[values.length - 1]}`),
      fact(own ? "Photos you rated" : "Rated photos in its pool", whole(model.pool)),
      fact("Interval", `${Math.round(100 * model.coverage)}\u00a0%`),
      fact("Stars begin at", stars.map((x) => Number(x.toFixed(2))).join(", "), STARS_OF[model.stars_of]),
      fact("Unlike, limit", fixed(model.unlike_limit, 2)),
      model.quality && model.quality.srcc !== null
        ? fact("Rank correlation", fixed(model.quality.srcc, 2), "on photos it had not seen") : null,
      fact("Digest", model.digest.slice(0, 12))),
    checked ? make("p", { class: "note", text: checked.verdict }) : null);
}

async function begin() {
  try {
    const { models, default: first } = await (await ask("v1/models")).json();
    byId("model-list").replaceChildren(...models.map((model) => panelOf(model, model.name === first)));
    tell(byId("models-words"), "");
  } catch (error) {
    tell(byId("models-words"), error.status === 401 ? "Give the token on the first page, in this tab, to see them."
      : error instanceof Lost ? "The service does not answer." : error.message);
  }
}

chooseTheme(byId("theme"));
document.querySelector(".tools").hidden = false;
begin();
