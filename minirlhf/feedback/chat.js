// The chat page: say something, compare the answers as they come, choose one, go on with it.
let state = {turns: []}                     // the conversation as the server sent it
let phase = "loading"                       // then "writing", "answering", "choosing", "left"
let busy = false                            // a choice is on its way
let stream = null                           // ends the answers that are on their way

const NAMES = {...SPEAKERS, user: "You"}
const HINTS = {
  writing: byTouch ? "" : "Enter sends, Shift + Enter begins a new line.",
  answering: "The models are answering.",
  choosing: byTouch ? "Which answer is better?" : "Which answer is better? Press its number.",
}

// ---- drawing

function show(next) {
  state = next
  setPhase(state.answers ? "choosing" : "writing")
  const choices = state.choices === 1 ? " choice so far" : " choices so far"
  $("numbers").replaceChildren(element("b", "", state.choices), choices)
  const turns = state.turns.map(({role, content}) => turn(role, content, NAMES))
  $("turns").replaceChildren(...turns)
  if (state.forgotten) {
    const first = state.turns.findIndex(({role}) => role !== "system")
    turns[first + state.forgotten].before(element("p", "divider",
      "The models no longer see what stands above: their context is full."))
  }
  if (!turns.length) $("turns").append(welcome())
  showAnswers(state.answers || [], state.cut)
  if (state.draft) $("text").value = state.draft
  focusOn()
}

function welcome() {
  const box = element("div", "", element("h1", "", "Talk with the models"), "Several answer each "
    + "time. Choose the answer that you prefer: the conversation goes on with it. Which model is "
    + "which stays hidden until you finish.")
  box.id = "welcome"
  return box
}

function setPhase(now) {
  phase = now
  $("writing").hidden = phase !== "writing"
  $("equal").hidden = phase !== "choosing"
  $("stop").hidden = phase !== "answering"
  $("back").hidden = phase === "answering" || !state.turns.length
  $("answers").setAttribute("aria-busy", phase === "answering")
  say(HINTS[phase] || "")
}

function focusOn() {
  if (phase === "choosing") {
    $("answers").focus({preventScroll: true})
    $("turns").lastChild.scrollIntoView()
    return
  }
  if (!byTouch) $("text").focus()
  scrollTo(0, document.body.scrollHeight)
}

function showAnswers(texts, cut = []) {
  $("answers").replaceChildren(...texts.map((text, number) => makeCard(text, number, cut[number])))
}

function makeCard(text, number, isCut) {
  const name = `Answer ${number + 1}`
  const card = element("article", "card", element("h3", "", name), textBox(text))
  card.setAttribute("aria-label", name)
  if (isCut) card.append(element("p", "cut", "(cut here: --max_tokens is reached)"))
  if (phase === "choosing") {
    const choose = element("button", "", `Choose answer ${number + 1}`,
      element("kbd", "", number + 1))
    choose.setAttribute("aria-keyshortcuts", number + 1)
    choose.onclick = () => pick(number)
    card.append(choose)
  }
  return card
}

// ---- saying

async function send() {
  const text = $("text").value.trim()
  if (!text || phase !== "writing") return
  setPhase("answering")
  $("welcome")?.remove()
  const said = turn("user", text, NAMES)
  $("turns").append(said)
  $("text").value = ""
  said.scrollIntoView()
  stream = new AbortController()
  try {
    const next = await readAnswers(await fetchFrom("say", {text}, {signal: stream.signal}))
    show(next)
    tell(`${next.answers.length} answers are there. Choose one by its number.`)
  } catch (error) {
    show({...state, draft: text})           // nothing was said
    if (error.name !== "AbortError") say(error.message, true)
  }
}

/** Show the answers as they grow; gives the state at the end. */
async function readAnswers(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader()
  const texts = []
  let rest = ""
  for (;;) {
    const {value, done} = await reader.read()
    if (done) throw Error("label.py stopped in the middle of an answer: start it again, then send.")
    const lines = (rest + value).split("\n")
    rest = lines.pop()
    for (const line of lines.map(JSON.parse)) {
      if (line.error) throw Error(line.error)
      if (line.turns) return line
      grow(line, texts)
    }
  }
}

function grow(line, texts) {
  if (line.answers) {
    texts.push(...Array(line.answers).fill(""))
    showAnswers(texts)
    for (const card of $("answers").children) {
      card.classList.add("growing")
      fill(card.querySelector(".text"), "", "")
    }
  } else if (line.more) {
    texts[line.answer] += line.more
    fill($("answers").children[line.answer].querySelector(".text"), texts[line.answer], "")
  } else if (line.ended !== undefined) {
    const card = $("answers").children[line.ended]
    card.classList.remove("growing")
    fill(card.querySelector(".text"), texts[line.ended])
  }
}

// ---- choosing, and everything else

async function post(path, content) {
  if (busy || phase === "answering" || phase === "left") return
  busy = true
  try {
    show(await call(path, content))
  } catch (error) {
    await recover(error)
  } finally {
    busy = false
  }
}

/** After an error: what label.py knows, and what was said last is ready to be said again. */
async function recover(error) {
  const unanswered = phase === "choosing" ? state.turns.at(-1).content : ""
  try {
    const next = await call("conversation")
    show(next.answers ? next : {...next, draft: unanswered})
  } catch { /* the page stays as it is */ }
  say(error.message, true)
}

function pick(number) {
  if (phase === "choosing") post("choose", {id: state.id, picked: number})
}
function back() { post("back", {}) }
function equal() { pick(null) }
function stop() { stream?.abort() }

function anew() {
  post("new", {})
}

async function finish() {
  if (phase === "answering" || busy) return
  try {
    const {choices, score, next} = await call("finish", {})
    setPhase("left")
    const saved = choices === 1 ? "1 choice is saved." : `${choices} choices are saved.`
    end("Thank you", `${saved} The same command goes on from here; you can close this page.`,
      choices ? next : "", ...score.length ? [table(score)] : [])
  } catch (error) {
    say(error.message, true)
  }
}

function table(score) {
  const names = ["Model", "Wins", "Choices"]
  const head = element("tr", "", ...names.map(name => element("th", "", name)))
  const rows = score.map(({policy, mean, interval, choices}) => {
    const width = interval === null ? "" : ` ± ${Math.round(100 * interval)}`
    const share = `${Math.round(100 * mean)}${width} %`
    return element("tr", "", ...[policy, share, choices].map(cell => element("td", "", cell)))
  })
  return element("table", "", head, ...rows)
}

// ---- keys and buttons

const ACTIONS = {equal, back, stop, anew, finish}
for (const [id, act] of Object.entries(ACTIONS)) $(id).onclick = act
$("writing").onsubmit = event => {
  event.preventDefault()
  send()
}
$("text").onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || byTouch) return
  event.preventDefault()
  send()
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return
  if (event.key === "Escape") return stop()
  if (event.target === $("text")) return
  const digit = /^(Digit|Numpad)([1-9])$/.exec(event.code)
  const key = event.key.toLowerCase()
  if (digit && phase === "choosing" && digit[2] <= state.answers.length) pick(digit[2] - 1)
  else if (key === "t") equal()
  else if (key === "u") back()
  else return
  event.preventDefault()
})

async function look() {
  try {
    show(await call("conversation"))
  } catch (error) {
    say(error.message, true)
  }
}
showGuidelines().catch(error => say(error.message, true)).then(look)
