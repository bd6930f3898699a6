// The ranking page. A ranking is a list of groups of card numbers, best first; a group ties.
let shown = {}                              // the question as the server sent it
let cards = []                              // an element for each of its responses
let now = null                              // the ranking so far; null: there is no question
let past = []                               // what it was before each change, as JSON
let busy = false                            // an answer is on its way
let phase = "loading"                       // then "ranking", "done" with all of them, "left"

const EMPTY = {groups: [], harmful: [], allBad: false, tieNext: false}
const HINT = byTouch ? "Tap in order of preference, or drag by the number."
  : "Digits place, Shift + digit flags as harmful, Enter confirms. The last one falls into place "
    + "by itself."
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches
const plural = new Intl.PluralRules("en", {type: "ordinal"})
const ordinal = n => n + {one: "st", two: "nd", few: "rd", other: "th"}[plural.select(n)]

// ---- the question

function ask(state) {
  showProgress(state)
  if (!state.question) return allDone(state)
  if (state.question === shown.question) return
  phase = "ranking"
  shown = state
  past = []
  now = state.answer ? rankingOf(state.answer) : kept() || structuredClone(EMPTY)
  $("end").hidden = true
  document.body.classList.remove("ended")
  showConversation(state.turns)
  cards = state.cards.map(makeCard)
  cards.forEach(card => fadeAtEnd(card.querySelector(".text")))
  draw()
  scrollTo(0, 0)
  $("prompt").focus({preventScroll: true})
  const changed = "Your earlier answer: change it, then confirm again."
  say(state.answer ? changed : HINT)
  tell(`${state.done} done, ${state.left} left. ${cards.length} responses to rank.`)
}

function showProgress(state) {
  const total = state.done + state.left
  const rate = state.rate ? `  ·  ${state.rate} a minute` : ""
  $("numbers").replaceChildren(element("b", "", state.done), ` of ${total}  ·  ${state.left} left`,
    element("span", "wide", rate))
  $("progress").style.width = 100 * state.done / Math.max(1, total) + "%"
}

function showConversation(turns) {
  const boxes = turns.map(({role, text}) => turn(role, text))
  const earlier = boxes.slice(0, -1)
  $("turns").replaceChildren()
  if (earlier.length) {
    const count = earlier.length === 1 ? "1 earlier turn" : `${earlier.length} earlier turns`
    const fold = element("details", "", element("summary", "", count), ...earlier)
    fold.open = !byTouch
    $("turns").append(fold)
  }
  $("turns").append(boxes.at(-1))
  $("prompt").scrollTop = boxes.at(-1).offsetTop - 40
}

function makeCard(text, i) {
  const key = element("button", "key", String(i + 1))
  const harm = element("button", "harm alarming", "Harmful")
  harm.title = "Shift + " + (i + 1)
  harm.onclick = () => flag(i)
  key.setAttribute("aria-keyshortcuts", i + 1)
  key.onclick = event => { if (!event.detail) place(i) }    // by keys; `grab` handles presses
  const card = element("li", "card", key, element("span", "rank"), textBox(text), harm)
  card.onpointerdown = event => { if (event.target !== harm) grab(event, i) }
  return card
}

/** What a record says about the cards -> a ranking. */
function rankingOf({ranks, harmful, all_bad, skip}) {
  const groups = []
  if (!skip) ranks.forEach((rank, i) => (groups[rank - 1] ||= []).push(i))
  return {groups, harmful, allBad: all_bad, tieNext: false}
}

/** What was not confirmed yet before a reload. */
function kept() {
  const {question, now} = JSON.parse(sessionStorage.getItem("ranking")) || {}
  return question === shown.question ? now : null
}

function allDone(state) {
  phase = "done"
  now = null
  shown = {}
  const back = element("button", "", "Take the last answer back", element("kbd", "", "U"))
  const finish = element("button", "main", "Finish", element("kbd", "", "Enter"))
  back.onclick = undo
  finish.onclick = leave
  end("All done, thank you", `${state.done} answers are saved.`, "",
    element("p", "", back, " ", finish))
}

// ---- drawing

const rankOf = i => now.groups.findIndex(group => group.includes(i))
const rest = () => cards.map((_, i) => i).filter(i => rankOf(i) < 0)

/** The groups that Enter would confirm, or null. */
function complete() {
  const left = rest()
  const groups = now.groups.map(group => [...group])
  if (left.length > 1 && !now.allBad) return null
  if (left.length && now.tieNext && groups.length) groups.at(-1).push(...left)
  else if (left.length) groups.push(left)
  return groups
}

function draw() {
  const places = new Map(cards.filter(card => card.isConnected)
    .map(card => [card, card.getBoundingClientRect().top]))
  const focused = document.activeElement
  const left = rest()
  const free = left.length > 1 ? [slot()] : []
  $("ranked").replaceChildren(...now.groups.flat().map(i => cards[i]), ...free)
  $("unranked").replaceChildren(...left.map(i => cards[i]))
  cards.forEach(drawCard)
  if (focused.isConnected) focused.focus({preventScroll: true})   // moving it took the focus away
  $("ask").hidden = !left.length
  $("best").hidden = !now.groups.length
  $("tie").setAttribute("aria-pressed", now.tieNext)
  $("bad").setAttribute("aria-pressed", now.allBad)
  $("confirm").setAttribute("aria-disabled", !complete())
  sessionStorage.setItem("ranking", JSON.stringify({question: shown.question, now}))
  if (!calm) places.forEach((top, card) => glide(card, top))
}

function slot() {
  const rank = now.groups.length + !now.tieNext
  const place = rank === 1 ? "Best" : (now.tieNext ? "Tied " : "") + ordinal(rank)
  const box = element("li", "slot", element("b", "", place), ": drop a response here")
  box.setAttribute("aria-hidden", true)
  return box
}

function drawCard(card, i) {
  const [key, badge, , harm] = card.children
  const rank = rankOf(i)
  const group = now.groups[rank] || []
  const isLast = rank < 0 && rest().length === 1 && now.groups.length > 0
  const label = rank >= 0 ? ordinal(rank + 1) : isLast ? ordinal(now.groups.length + !now.tieNext)
    : ""
  const tie = group.length > 1 || (isLast && now.tieNext) ? ", tied" : ""
  badge.textContent = label + tie
  badge.hidden = !label
  card.className = "card"
  card.classList.toggle("tied", group.indexOf(i) > 0)
  card.classList.toggle("ties", rank >= 0 && group.at(-1) !== i)
  card.classList.toggle("last", isLast)
  card.style.transform = ""
  key.setAttribute("aria-pressed", rank >= 0)
  key.setAttribute("aria-label", `Response ${i + 1}, ${label + tie || "not ranked"}`)
  harm.setAttribute("aria-pressed", now.harmful.includes(i))
  harm.setAttribute("aria-label", `Response ${i + 1} is harmful`)
}

function glide(card, from) {
  const way = from - card.getBoundingClientRect().top
  if (!way) return
  card.animate([{transform: `translateY(${way}px)`}, {}],
    {duration: 220, easing: "cubic-bezier(.2, .8, .2, 1)"})
}

// ---- changes, each of which can be undone

function change(how) {
  if (busy || !now) return
  const before = JSON.stringify(now)
  how()
  now.groups = now.groups.filter(group => group.length)
  if (JSON.stringify(now) !== before) past.push(before)
  say(HINT)
  draw()
  const heard = now.groups.map((group, rank) => {
    return ordinal(rank + 1) + ": " + group.map(i => i + 1).join(" and ")
  })
  tell(heard.join(", ") || "Nothing is ranked.")
}

function takeOut(i) {
  now.groups = now.groups.map(group => group.filter(j => j !== i))
}

function place(i) {
  change(() => {
    const joins = now.tieNext && now.groups.length
    if (rankOf(i) >= 0) takeOut(i)
    else if (joins) now.groups.at(-1).push(i)
    else now.groups.push([i])
    now.tieNext = false
  })
}

function flag(i) {
  change(() => {
    if (now.harmful.includes(i)) now.harmful = now.harmful.filter(j => j !== i)
    else now.harmful = [...now.harmful, i]
  })
  tell(`Response ${i + 1} is ${now.harmful.includes(i) ? "" : "not "}flagged as harmful.`)
}

function bad() {
  change(() => { now.allBad = !now.allBad })
  if (now && now.allBad) say("All bad: those that you leave unranked tie for last.")
}

function tie() {
  if (!now || !now.groups.length) {
    return say("Place one first: Tie puts the next one on the same rank.")
  }
  change(() => {
    if (rest().length) {
      now.tieNext = !now.tieNext
    } else if (now.groups.length > 1) {
      const last = now.groups.pop()
      now.groups.at(-1).push(...last)
    }
  })
  if (now.tieNext) say(`The next one ties for place ${now.groups.length}.`)
}

/** One change back; with nothing to undo, the question before this one. */
function undo() {
  if (busy) return
  if (!past.length) return send("back", {question: shown.question})
  now = JSON.parse(past.pop())
  say(HINT)
  draw()
  tell("Undone.")
}

// ---- answers

async function send(path, body) {
  if (busy) return
  busy = true
  try {
    const state = await call(path, body)
    busy = false
    if (state.question === shown.question) shown = {}
    ask(state)
    if (state.saved === false) {
      say("That one was answered already, perhaps in another tab: the first answer counts.")
    }
  } catch (error) {
    busy = false
    say(error.message, true)
  }
}

function answer(content) {
  send("answer", {question: shown.question, harmful: now.harmful, all_bad: now.allBad,
    replaces: !!shown.answer, ...content})
}

function confirm() {
  if (!now) return leave()
  const groups = complete()
  if (!groups) {
    return say(`${rest().length} are still unranked. Place all but one, or tie them.`, true)
  }
  answer({ranks: cards.map((_, i) => 1 + groups.findIndex(group => group.includes(i)))})
}

function skip() { if (now) answer({skip: true}) }

async function leave() {
  try {
    const state = await call("finish", {})
    now = null
    phase = "left"
    const again = state.left ? " The same command goes on from here." : ""
    end(state.left ? "Until next time" : "All done, thank you",
      `${state.done} answers are saved.${again} You can close this page.`, state.next)
  } catch (error) {
    say(error.message, true)
  }
}

// ---- dragging: a press that moves is a drag, one that does not is a click

function grab(start, i) {
  const card = cards[i]
  const text = start.target.closest(".text")
  const onScrollbar = text && start.offsetX >= text.clientWidth
  if (start.button || !now || busy || onScrollbar) return
  const byFinger = start.pointerType === "touch" && !start.target.closest(".key")
  const top = scrollY
  let dragging = false
  let drop = null                           // {where, target}: where it would fall

  function move(event) {
    const dx = event.clientX - start.clientX
    const dy = event.clientY - start.clientY
    if (!dragging && Math.hypot(dx, dy) < 7) return
    if (byFinger) return stop()             // a finger on the text scrolls
    dragging = true
    getSelection().removeAllRanges()
    clearMarks()
    drop = findDrop(event.clientY, i)
    card.classList.add("drag")
    card.style.transform = `translate(${dx}px, ${dy + scrollY - top}px)`
    if (drop.target !== undefined) cards[drop.target].classList.add(drop.where)
    else if (drop.where === "end") document.querySelector(".slot")?.classList.add("here")
  }
  function stop() {
    for (const [name, handle] of handlers) removeEventListener(name, handle)
    clearMarks()
    card.classList.remove("drag")
  }
  function release() {
    stop()
    if (dragging) change(() => dropCard(i, drop))
    else place(i)
  }
  function cancel() {
    stop()
    draw()
  }
  const handlers = [["pointermove", move], ["pointerup", release], ["pointercancel", cancel]]
  for (const [name, handle] of handlers) addEventListener(name, handle)
}

function clearMarks() {
  for (const box of document.querySelectorAll(".card, .slot")) {
    box.classList.remove("before", "after", "tie", "here")
  }
}

/** Where card i falls at this height: before, after or on a ranked one, on top, at the end, out. */
function findDrop(y, i) {
  const ranked = now.groups.flat().filter(j => j !== i)
  for (const target of ranked) {
    const {top, bottom, height} = cards[target].getBoundingClientRect()
    if (y < top - 8 || y > bottom + 8) continue
    if (y < top + height * .3) return {where: "before", target}
    if (y > bottom - height * .3) return {where: "after", target}
    return {where: "tie", target}
  }
  const other = [...$("unranked").children].find(card => card !== cards[i])
  if (other && y >= other.getBoundingClientRect().top) return {where: "out"}
  const isAbove = ranked.length && y < cards[ranked[0]].getBoundingClientRect().top
  return {where: isAbove ? "top" : "end"}
}

function dropCard(i, {where, target}) {
  takeOut(i)
  now.groups = now.groups.filter(group => group.length)
  now.tieNext = false
  const at = now.groups.findIndex(group => group.includes(target))
  if (where === "tie") now.groups[at].push(i)
  if (where === "before") now.groups.splice(at, 0, [i])
  if (where === "after") now.groups.splice(at + 1, 0, [i])
  if (where === "top") now.groups.unshift([i])
  if (where === "end") now.groups.push([i])
}

// ---- keys and buttons

const ACTIONS = {undo, tie, bad, skip, confirm, finish: leave}
for (const [id, act] of Object.entries(ACTIONS)) $(id).onclick = act
const KEYS = {u: undo, t: tie, b: bad, s: skip, enter: confirm}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || phase === "left") return
  const key = event.key.toLowerCase()
  const onControl = event.target.closest("button, summary")
  if (onControl && (key === "enter" || key === " ")) return
  const digit = /^(Digit|Numpad)([1-9])$/.exec(event.code)
  if (digit && digit[2] <= cards.length && now) (event.shiftKey ? flag : place)(digit[2] - 1)
  else if (KEYS[key] && !event.repeat) KEYS[key]()
  else return
  event.preventDefault()
})

/** Another tab may have gone ahead. */
async function look() {
  if (busy || phase === "left" || shown.answer) return
  try {
    ask(await call("question"))
  } catch (error) {
    say(error.message, true)
  }
}
addEventListener("focus", look)
addEventListener("pagehide", () => {        // closed after the last answer: that is the end
  if (phase === "done") navigator.sendBeacon(`finish?token=${token}`, "{}")
})
showGuidelines().then(look)
