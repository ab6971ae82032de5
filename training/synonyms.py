"""Owns the words and groups of words that mean much the same. Data only.

One line of `_WORDS` gives a word and what may stand for it; one line of `_GROUP_LINES` gives groups of words, each of
which may stand for any other.
"""

from __future__ import annotations

_WORDS = """
start: launch, start up, bring up, spin up, fire up, boot, begin, run, create, kick off, get going, get up, \
turn on, open, power up, initiate, kick-start
stop: halt, end, terminate, shut down, turn off, switch off, quit, close, finish, take down, put an end to, \
cease, get rid of, bring down
show: display, list, see, view, print, look at, check, get, tell me, inspect, find out, give, present, output, dump
see: show, view, look at, check, find out, display, inspect, watch, get, have a look at, observe
list: show, display, print, enumerate, see, get, name, tell me
delete: remove, erase, get rid of, wipe, drop, throw away, clear, discard, dispose of, purge, uninstall, trash
remove: delete, erase, get rid of, drop, take out, throw away
change: set, modify, alter, adjust, switch, edit, configure, tune, replace, vary, swap, update, override
set: change, configure, choose, adjust, specify, define, pick, fix, put, assign, tweak, enter
choose: pick, select, set, decide on, opt for, go for, settle on
pick: choose, select, take, opt for
add: get, attach, include, bring in, put in, create, append, plug in, join, bring, put
use: employ, work with, try, utilise, make use of, apply, utilize, take, go with, deal with, operate
used: employed, utilised, applied, in use, taken
need: require, want, have to have, call for, depend on
find: locate, look up, get, discover, search for, spot, see, track down
save: store, keep, write, persist, back up, preserve, record, dump, archive, write out
store: save, keep, hold, put
stored: saved, kept, held, written
restore: bring back, reload, recover, load again, get back, return to, go back to, revive, resume
download: fetch, get, pull, install, load, obtain, grab, acquire, retrieve, pull down
install: set up, get, put on
send: submit, pass, give, post, deliver, issue, put, transmit, hand, forward, push
ask: query, question, prompt, put a question to, pose, put, request, enquire
read: look at, see, view, get, open, print, fetch
write: put, echo, send, type, enter, print, give
connect: hook up, link, attach, talk, speak, join, couple, plug, bind
happens: occurs, goes on, takes place, will happen, comes next, is done, results
happen: occur, go on, take place
fails: crashes, breaks, dies, goes wrong, stops working, goes down, is gone, falls over, quits, gives up
dies: crashes, fails, breaks, is killed, goes down, disappears, falls over, blows up, segfaults, vanishes, is \
gone, ends suddenly
crashes: dies, fails, breaks, is killed, goes down, blows up, falls over, segfaults, aborts, goes up in flames
fast: quick, speedy, rapid, swift, quickly, high speed
faster: quicker, speedier, more quickly, at a higher speed
slow: sluggish, not fast, laggy, too slow, taking long
big: large, huge, heavy, sizeable, great
large: big, huge
bigger: larger, better, stronger, real
small: little, tiny, compact, short, minor, mini
many: lots of, several, a lot of, multiple, numerous, various, a bunch of, plenty of, a number of
several: many, multiple, a few, some, two or more, a couple of, a handful of, various
multiple: many, several, more than one
different: various, other, distinct
difference: distinction, contrast
machine: computer, host, server, box, pc, device, workstation, piece of hardware
machines: computers, hosts, servers, boxes, pcs, devices, systems, workstations, pieces of hardware
computer: machine, pc, laptop
computers: machines, servers
answer: reply, response, output, respond, result, text
answers: replies, responses, outputs, results, texts
question: prompt, query, request, enquiry
prompt: question, query, message
error: failure, problem, error message, fault, bug, trouble, exception
problem: issue, trouble, difficulty, fault, mess, hitch
command: instruction, shell command, cli command, call, keyword
commands: instructions
option: flag, switch, setting, parameter, argument, knob
setting: option, parameter
settings: options, configuration, parameters
directory: folder, dir, place, location
folder: directory, dir
model: llm, language model
models: llms, language models
cluster: system, setup
running: active, up, alive, working, started, on, live, in operation, going
available: there, offered, supported, possible, existing, on offer
supported: available, offered, possible
support: offer, have, know, allow
default: standard, preset, predefined
important: relevant, essential, significant, crucial, central, vital
useful: helpful, handy, good, worthwhile, practical, valuable
good: useful, nice, helpful
advantage: benefit, plus, upside
explain: describe, clarify, tell me about, spell out, illustrate, shed light on, teach me, walk me through
describe: explain, outline, sketch, characterise, picture
tell: inform, teach
help: assist, support
make: create, build, produce, let, have, cause
create: make, build, set up, produce, generate, add, get, open
between: among
kind: type, sort, class, category, flavour
kinds: types, sorts, flavours, classes, categories
way: method, possibility, approach
ways: methods, possibilities, options
memory: ram, main memory, space
limit: cap, restrict, bound, maximum, ceiling
program: application, script, tool, client, app, software, code, utility
protected: secured, safe, guarded, shielded, locked
safe: secure, protected
secure: safe, protected, hardened, locked down
speed: pace, rate, performance
talk: speak, chat, communicate, converse
instead: rather
without: with no
quit: leave, exit, close, end, get out of, abandon, finish
leave: quit, exit, end, get out of, depart from, close
works: functions, operates, runs, goes, is done
work: function, operate, do the job, go
mean: signify, stand for, say, tell
called: named, known as, termed
earlier: previous, older, past
long: lengthy, large, extended, big
wrong: bad, broken, not right, amiss, not ok, faulty, off
crash: failure, breakdown, abort, segfault
died: crashed, failed, broke, was killed, fell over
node: worker, isolate, worker process
nodes: workers, isolates, worker processes
worker: node, isolate
workers: nodes, isolates
immediately: at once, right away, instantly, now, straight away, without delay
gracefully: gently, softly, cleanly, politely, carefully, nicely
automatically: by itself, on its own, without me, by magic, without my help, unattended
conversation: chat, dialogue, talk, discussion
conversations: chats, dialogues, talks
chat: conversation, dialogue, talk
shell: command line, prompt
file: document
files: documents
strategy: policy, method, algorithm, mode
strategies: policies, methods, algorithms, modes
requests: queries, calls, questions, jobs
request: query, call, job
distribute: spread, split, divide, share out
distributed: spread, shared out, divided
spread: distribute, divide, share out, hand out
benefit: advantage, gain, upside, plus, use, profit
benefits: advantages, gains, upsides, merits
gain: benefit, win, profit
drawbacks: downsides, disadvantages, problems, weak points
purpose: aim, goal, role, job, point, use
role: job, task, function, part, duty
release: free, unload, let go of
unload: free, drop, release, eject
resume: continue, go on with, pick up, carry on with
continue: resume, go on with, carry on with, proceed with, pick up
interrupt: break, abort, stop, cut off, cancel
cancel: abort, stop, drop, kill, call off, interrupt
abort: cancel, stop, break off, interrupt
restart: reboot, relaunch, start again, bounce
remember: recall, keep in mind, memorise, retain, keep
remembers: recalls, keeps in mind, retains
forget: lose, drop, clear
search: look through, scan, comb through, query, find something in
check: verify, test, inspect, validate, look at, examine
verify: check, confirm, test, make sure of
validate: check, verify, lint, test
test: try, check, try out, exercise
edit: change, modify, alter, adapt, open
configure: set up, set, tune, adjust, customise
enable: turn on, switch on, activate, allow
disable: turn off, switch off, deactivate, suppress, get rid of
activate: enable, turn on, switch on
monitor: watch, observe, keep an eye on, track, follow
watch: observe, follow, monitor, track, keep an eye on, look at
follow: tail, watch, track, observe
count: number, tell how many
grow: increase, extend, enlarge, expand
shrink: reduce, decrease, downsize, cut
increase: raise, grow, bump up, boost, expand, push up
reduce: decrease, lower, shrink, cut, cut down, bring down
raise: increase, bump up, turn up, lift
lower: reduce, decrease, turn down, cut
select: choose, pick, take
switch: change, move, swap, go over
combine: merge, join, fuse, unite, put together, aggregate
merge: combine, fuse, join
vote: poll, ballot
mount: attach, make visible, map, hook in
serve: offer, provide, handle
provide: offer, serve, give, supply
offer: provide, give, have
contain: hold, have, include, consist of
contains: holds, has, includes
inside: within, in, behind
hold: contain, keep, store
holds: contains, keeps, stores, has
located: found, stored, placed
lost: gone, thrown away, missing, destroyed
broken: damaged, corrupt, faulty, defective, bad
damaged: broken, corrupt, faulty
missing: not there, absent, gone
stuck: frozen, hung, blocked, not responding
hangs: freezes, is stuck, blocks, does not respond, stalls
hang: freeze, stall, block
full: used up, exhausted, at its limit
busy: occupied, working, in use, taken
waiting: queued, pending, in line, held back
wait: queue, be patient, hang around
password: secret, credential
colleague: coworker, team mate, friend
colleagues: coworkers, team mates, friends, other people
internet: network, web, net, wifi
offline: without internet, disconnected, without a network, with no connection
quickly: fast, in no time, rapidly
port: tcp port, port number
address: url, location
api: interface, web service
library: package, module, sdk
script: program, shell script, batch file
terminal: console, command line, shell
laptop: computer, notebook, machine, pc
server: machine, host, box
servers: machines, hosts, boxes
version: release, build
documentation: docs, manual, reference, handbook
overview: summary, survey, picture, outline
example: sample, demo, illustration, case
short: brief, concise, quick
last: latest, most recent, previous, final
new: fresh, another, additional, extra
another: a different, an additional, one more, a second, some other
more: additional, further, extra
old: earlier, previous, past, former
whole: entire, complete, full
entire: whole, complete
everything: it all, all of it, the lot, the whole thing
people: users, folks, persons, guys
user: person, client
users: people, persons, clients
best: ideal, optimal, most suitable, right
common: usual, typical, ordinary
hard: difficult, tricky, tough, complicated
difficult: hard, tricky, tough, complicated
easy: simple, convenient
same: identical, equal, very same
text: words, output
words: terms, text
number: count, amount, quantity
graceful: gentle, soft, clean, polite
gpu: graphics card, video card, cuda card
graphics: video
"""

_GROUP_LINES = """
what is | what's | what exactly is | whats
what are | what exactly are | what may be
how do I | how can I | how would I | how could I | how might I | how to | how does one | how am I supposed to
how does | in what way does | in which way does
how many | what number of | how large a number of
how much | what amount of
how long | for how long
how big | how large | what size
how often | how frequently
is there a way to | is it possible to | can I | am I able to | could I | any chance to
which command | what command | what instruction
what does it mean | what does that tell me | what is the meaning
tell me about | inform me about | give me information on | say something about | talk about | give me details on
tell me | let me know | I'd like to hear | inform me
show me | let me see | can I see | give me
give me | I'd like | I want | hand me | could I have | let me have | I need
I want to | I'd like to | I would like to | I need to | I have to | I wish to | I am trying to | I intend to \
| I'm about to | I plan to
I want | I'd like | I wish for | I need
get rid of | remove | delete | do away with | dispose of | throw out | eliminate
turn off | switch off | shut off | power off
turn on | switch on | power on | enable
shut down | bring down | take down | power down | close down
start up | bring up | spin up | fire up | boot up
right now | at the moment | currently | at present | this very moment | as we speak
at once | immediately | right away | instantly | this second | straight away | on the spot
at the same time | simultaneously | in parallel | at once | concurrently | together
one after the other | in turn | one by one | sequentially
by itself | on its own | automatically | without my help
a lot of | lots of | many | plenty of
several nodes | a few nodes | many nodes | more than one node | multiple nodes | two or three nodes
several machines | many machines | multiple computers | more than one computer | a few servers | two or more hosts
several models | two models | multiple models | more than one model
different from | unlike | distinct from
used for | good for | meant for | intended for | there for
the point of | the purpose of | the use of | the sense of | the idea behind
the advantage of | the benefit of | the good thing about | the upside of
what happens when | what happens if | what if | what occurs when | what do I see when | what follows when
what happens to | what becomes of | what about
command line | terminal | console | shell
hard disk | disk | drive | storage
hugging face | huggingface | the hub | hf | HuggingFace
graphics card | gpu | video card | graphics processor
environment variable | env var | env variable | shell variable
environment variables | env vars | env variables
system prompt | initial instruction | system message
language model | llm | ai model | text model
api key | access key | secret key | api token
web page | webpage | site | web site
web browser | browser | firefox | chrome
standard input | stdin | std in
status code | return code | exit code
other machines | other computers | remote hosts | other hosts
another machine | another computer | a remote host | a second machine | some other pc
another model | a different model | some other model | a new model
the last conversation | my previous chat | the latest chat | the chat from yesterday
previous turn | last turn | latest message
load balancing | balancing of load | balancing | load distribution | request balancing
load balancer | balancer | request distributor
balancing strategy | balancing policy | balancer strategy | routing strategy | balancing method
number of nodes | node count | count of nodes | cluster size
a node | one node | a worker | an isolate | some node | a single node
my nodes | the nodes | all nodes | my workers | our nodes
the cluster | my cluster | our cluster | the whole cluster | the llambo cluster
the daemon | the llambo daemon | the background process | the service
the chat | limbot | the limbot chat | the conversation program
the bridge | llama-cpp-bridge | the llama bridge | the socket bridge
file tree | file system | namespace | tree of files
in short | briefly | in a nutshell | in brief | tl;dr
please | pls | plz | kindly
thanks | thank you | thx | cheers
does not | doesn't | won't | fails to
do not | don't
cannot | can't | can not | am unable to
it is | it's
I am | I'm | im
running on | executing on
out of memory | oom | short of memory
too long | over the limit | too large | excessive
goes wrong | fails | breaks | does not work out
in the middle of | during | halfway through | while writing
without losing | and not lose | without any loss of
why is | how come | for what reason is | what is the reason that
why should I | what makes me | why would I | is it worth to
what is the best | what's a good | which is the best | what would you recommend as
is it safe to | can I safely | is it ok to
how fast | at what speed | how quick
where is | where do I find | where can I find | in which place is | where would I find | where's
where are | where do I find | where can I find | where would I find
stored | saved | kept | held | written to disk
written in | made with | programmed in
who made | who built | who created | who wrote | who is behind
according to | by
made of | composed of | built from
such as | like | for instance
"""

SYNONYMS: dict[str, tuple[str, ...]] = {
    word: tuple(other.strip() for other in others.split(","))
    for word, _, others in (line.partition(": ") for line in _WORDS.strip().splitlines())
}

GROUPS: tuple[tuple[str, ...], ...] = tuple(
    tuple(words.strip() for words in line.split("|")) for line in _GROUP_LINES.strip().splitlines()
)
