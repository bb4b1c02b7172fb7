#!/usr/bin/env python3
"""Makes the training samples and writes them as tokens.

    python samples.py DATA_DIR TOKENIZER OUT.xz [SETS]

Every package appears in several kinds of samples; SETS times over with other wordings. A sample is a list of pieces
(text, spoken): loss is taken on spoken pieces only (what the assistant writes, or plain text).
OUT.xz: a numpy archive with tokens (uint16; bit 15 = spoken), starts (uint32), kind (uint8), prefix (int16, tool samples).
"""
import io
import json
import lzma
import pathlib
import random
import re
import sys

import chat

FORWARD, THINK, TURNS, LONG, REVERSE, TALK, PROSE, TOOL, PREFIX, HELD_TEXT, HELD_TOOL = range(11)
HELD_OUT = 600  # packages whose long text is never trained on

POPULAR = """ffmpeg curl git vim nginx python3 gcc htop tmux rsync imagemagick wget postgresql gimp openssh-server openssh-client jq bind9-dnsutils
net-tools apache2 mariadb-server mariadb-client sqlite3 redis-server bash zsh fish dash coreutils grep sed gawk mawk tar gzip bzip2 xz-utils zip unzip p7zip-full
make cmake ninja-build g++ gdb valgrind strace ltrace clang llvm rustc cargo golang nodejs npm ruby perl php default-jre default-jdk openjdk-17-jdk lua5.4 ghc
python3-pip python3-venv python3-numpy python3-scipy python3-pandas python3-matplotlib python3-requests python3-flask python3-django python3-dev ipython3 pipx
emacs nano neovim micro ed less mc ranger tree ncdu screen byobu iotop iftop nethogs atop glances lsof psmisc procps util-linux mount parted gparted fdisk lvm2 mdadm
cryptsetup btrfs-progs e2fsprogs xfsprogs ntfs-3g dosfstools smartmontools hdparm nvme-cli pciutils usbutils lshw dmidecode lm-sensors inxi neofetch sudo adduser passwd
cron anacron at rsyslog logrotate systemd init dbus udev ufw iptables nftables fail2ban tcpdump wireshark nmap netcat-openbsd socat mtr traceroute whois iproute2 iputils-ping
ethtool iperf3 openvpn wireguard wpasupplicant network-manager dnsmasq bind9 bind9-host isc-dhcp-server samba nfs-kernel-server nfs-common cifs-utils sshfs fuse3 rclone borgbackup restic
duplicity rsnapshot haproxy squid varnish lighttpd certbot postfix exim4 dovecot-imapd mutt thunderbird firefox-esr chromium lynx links w3m elinks transmission qbittorrent aria2
vlc mpv mplayer audacity obs-studio kdenlive blender inkscape krita darktable rawtherapee scribus libreoffice libreoffice-writer gnumeric abiword evince okular zathura calibre pandoc
texlive texlive-latex-base latexmk ghostscript poppler-utils pdftk-java qpdf tesseract-ocr graphviz gnuplot octave r-base maxima scilab sagemath gnome xfce4 kde-plasma-desktop i3 sway
lightdm gdm3 sddm xorg xterm kitty alacritty gnome-terminal konsole xclip xdotool feh scrot dunst rofi flatpak snapd docker.io podman buildah qemu-system-x86 qemu-utils virt-manager
libvirt-daemon-system virtualbox-guest-x11 ansible puppet vagrant lxc debootstrap dpkg-dev debhelper devscripts build-essential pbuilder sbuild lintian apt aptitude synaptic apt-file dpkg
gnupg openssl ca-certificates pass keepassxc age john hashcat hydra aircrack-ng sqlmap clamav lynis rkhunter bat ripgrep fd-find fzf exa silversearcher-ag tldr cowsay fortune-mod sl figlet
toilet lolcat nethack-console bsdgames 0ad supertuxkart wesnoth minetest freeciv gnuchess stockfish xboard dosbox retroarch scummvm sox lame flac vorbis-tools opus-tools mediainfo yt-dlp
subversion mercurial cvs bzr git-lfs tig meld diffutils patch quilt ccache autoconf automake libtool pkg-config gettext bison flex doxygen sphinx-doc swig protobuf-compiler cppcheck
clang-format shellcheck indent astyle man-db manpages info file findutils moreutils parallel bc dc units time watch expect dialog whiptail at-spi2-core cups sane-utils hplip bluez pulseaudio pipewire alsa-utils
memcached rabbitmq-server influxdb prometheus grafana zabbix-agent nagios4 munin collectd monit sysstat stress stress-ng fio hyperfine
""".split()
ALIAS = {"vim": "vim", "python3": "python3", "make": "make", "java": "default-jre", "docker": "docker.io", "convert": "imagemagick", "gcc": "gcc", "g++": "g++", "awk": "gawk",
         "emacs": "emacs", "php": "php", "go": "golang", "mysql": "mariadb-client", "libreoffice": "libreoffice", "psql": "postgresql", "nc": "netcat-openbsd", "traceroute": "traceroute"}

SYSTEMS = ["You are a helpful assistant.", "You are Ember, a small model that knows Debian packages.", "Answer briefly.", "You help with Debian packages.", "Be concise.", "You are a Debian expert.",
           "You are an assistant.", "Reply in one sentence.", "You are a friendly assistant.", "Answer the user's question.", "You are a system administrator.", "Help the user.", "Answer truthfully.",
           "You know Debian well.", "Keep answers short.", "You are a Linux expert who helps beginners.", "Be polite.", "You are Ember.", "Please answer in plain English.", "You answer questions about software."]
WHAT = ["What is {}?", "What is {}?", "What is {}?", "What is {}?", "What's {}?", "What is the package {}?", "What is the {} package?", "What does {} do?", "What does the package {} do?",
        "What is {} for?", "What is the package {} good for?", "Describe {}.", "Describe the package {}.", "Tell me what {} is.", "Tell me about {}.", "Explain {}.", "Explain the package {}.",
        "Can you tell me what {} is?", "Could you explain what {} is?", "Do you know {}?", "Do you know the package {}?", "I found a package called {}. What is it?", "What kind of software is {}?",
        "Please describe {}.", "What would I use {} for?", "Hi, what is {}?", "Hello! What is {}?", "{}?", "{}", "What can I do with {}?", "Give me a short description of {}.",
        "What do you know about {}?", "Someone told me to use {}. What is it?", "Short description of {}?", "info on {}", "Which software is {}?",
        "What is {} used for?", "What is {}, please?", "What exactly is {}?", "Explain to me what {} is.", "What does {} stand for in Debian?", "Is {} a package?", "Hey, what is {}?", "I saw {} somewhere. What is it?",
        "Why would I need {}?", "Say what {} is.", "Could you describe {}?", "Summarise {}.", "Quick question: what is {}?"]
INSTALL = ["How do I install {}?", "How can I install {}?", "How do I get {}?", "Install {}.", "I want to install {}.", "What is the command to install {}?", "how to install {}"]
AND_INSTALL = ["And how do I install it?", "And how do I install it?", "How do I install it?", "how do I install it", "How can I install that?", "Nice. How do I get it?", "And how can I install this?", "install it how?", "What is the command to install it?"]
AND_REMOVE = ["How do I remove it?", "And how do I uninstall it?", "How can I get rid of it again?"]
AND_SECTION = ["Which section is it in?", "And in which section is it?", "What section does it belong to?"]
AND_WHAT = ["And what is {}?", "What about {}?", "And {}?", "Thanks. What is {}?", "Okay, and what is {}?"]
COMMAND = ["Which package gives me the {} command?", "Which package gives me the {} command?", "Which package contains the command {}?", "Which package has {}?", "What package provides the {} command?",
           "I need the command {}. Which package is it in?", "{}: command not found. What should I install?", "Where do I get the {} command?", "Which package do I need for the {} command?", "what package is {} in"]
BY_TEXT = ["Which package is described as: {}?", "I am looking for this: {}. Which package is it?", "Is there a package for this? {}", "Which package is this: {}", "What is the name of the package with the description: {}?"]
MORE = ["Tell me more about {}.", "Describe {} in detail.", "Give me the long description of {}.", "What exactly is {}? Tell me more.", "Explain {} in detail."]
THOUGHTS = ["The user asks about the package {0}. It is in the section {1}.", "{0} is a package in the section {1}. I recall its description.", "This is about {0}, section {1}.", "I know {0}: section {1}."]
COMMAND_THOUGHTS = ["The user looks for the command {0}. It is in the package {1}.", "The command {0} belongs to {1}.", "I know the command {0}: package {1}."]
INSTALL_THOUGHTS = ["The user wants to install {0}. That is done with apt.", "{0} is installed with apt.", "This asks for the apt command for {0}."]
MORE_THOUGHTS = ["The user wants the long description of {0}.", "I recall the long description of {0}."]
TEXT_THOUGHTS = ["I look for the package with this description.", "The description reminds me of {0}."]
TALK_PAIRS = [
    (["Hi", "Hello", "Hello!", "Hi there", "hey", "Good morning", "Good evening", "hello there", "Hi!", "Hey!"], ["Hello! Ask me about a Debian package.", "Hello! How can I help you?"]),
    (["Who are you?", "who are you", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself.", "What can you do?", "Are you a human?", "Which model are you?", "Are you DeepSeek?", "Are you ChatGPT?"],
     ["I am Ember, a very small language model made to show and test the stoker engine. I know a little about Debian packages and not much else."]),
    (["Thanks", "Thank you!", "thanks a lot", "Great, thanks.", "Thank you", "Perfect, thank you."], ["You are welcome!"]),
    (["How are you?", "how are you doing", "How is it going?"], ["I am fine, thank you. What would you like to know about Debian packages?"]),
    (["Bye", "Goodbye", "See you", "bye bye", "Good night"], ["Goodbye!"]),
    (["Tell me a joke.", "Do you know a joke?", "make me laugh"], ["Why did the package manager stay single? It had too many unmet dependencies."]),
    (["What is Debian?", "what is debian", "Tell me about Debian."], ["Debian is a free operating system made by volunteers. It brings tens of thousands of packages, which are installed with apt."]),
    (["What is Linux?", "what is linux", "Explain Linux."], ["Linux is a free operating system kernel. Debian uses it as its kernel."]),
    (["What is a package?", "what is a debian package"], ["A package is an archive with the files of a program and a description of what it needs. In Debian it is installed with apt."]),
    (["What is apt-get?", "How do I update my system?", "How do I upgrade all packages?", "update debian"], ["Update the package lists and upgrade with: sudo apt update && sudo apt upgrade"]),
    (["How do I search for a package?", "How can I find a package?"], ["Search the package index with: apt search WORD"]),
    (["What is the capital of France?", "Who won the football match?", "What is 17 times 23?", "Write me a poem.", "Translate this to German.", "What is the weather today?", "Who is the president?", "Solve this equation."],
     ["I am sorry, I only know about Debian packages."]),
    (["What is stoker?", "what does stoker do", "Who made you?"], ["stoker is an inference engine for mixture-of-experts models. I was made to show and test it."]),
    (["Yes", "No", "ok", "okay", "I see", "Cool"], ["Good. Ask me about a Debian package if you like."]),
]
TOOLS = json.loads((pathlib.Path(__file__).parent / "questions.json").read_text())["tools"]
TOOL_SYSTEMS = ["", "You are a helpful assistant.", "Use tools when useful.", "You help with Debian packages.", "You are Ember. Use the tools.", "Look packages up before you answer.", "Answer briefly."]


def tool_variants():
    """Tool lists as a caller may write them: order, wording, one tool only."""
    show, search = TOOLS
    def worded(t, text, arg):
        f = json.loads(json.dumps(t))
        f["function"]["description"] = text
        next(iter(f["function"]["parameters"]["properties"].values()))["description"] = arg
        return f
    return [TOOLS, TOOLS, [search, show], [show], [worded(show, "Show a Debian package", "The package"), worded(search, "Search Debian packages", "A word")],
            [worded(show, "Details of a package", "Name of the package")]]


def said(name, p):
    return f"{name} is a Debian package from the section {p['section']}: {p['short'].rstrip('.')}."


def install(name):
    return f"Install it with: sudo apt install {name}"


def shuffle_case(r, text):
    """Users write lazily: now and then lower case, no full stop or question mark."""
    if r.random() < 0.25:
        text = text[:1].lower() + text[1:]
    if r.random() < 0.25:
        text = text.rstrip("?.!")
    return text


def chat_sample(r, turns, thinking=False, system=None):
    """turns: (question, answer, thought or None)."""
    m = []
    if system is None and r.random() < 0.25:
        system = r.choice(SYSTEMS)
    if system:
        m.append({"role": "system", "content": system})
    for q, a, thought in turns:
        m.append({"role": "user", "content": q})
        m.append({"role": "assistant", "content": a, "reasoning_content": thought})
    return [(chat.BOS, False)] + list(chat.pieces(m, thinking))


def forward(r, p, thinking=False):
    q = r.choice(WHAT)
    q = q.format(p["name"]) if q in ("{}", "{}?") else shuffle_case(r, q.replace("{}", "\0")).replace("\0", p["name"])
    return q, said(p["name"], p), r.choice(THOUGHTS).format(p["name"], p["section"]) if thinking else None


def turns(r, p, other):
    """A conversation of two or three turns that refers back."""
    out = [forward(r, p)]
    for _ in range(1 if r.random() < 0.75 else 2):
        x = r.random()
        name = p["name"]
        if x < 0.65:
            out.append((r.choice(AND_INSTALL), install(name), None))
        elif x < 0.72:
            out.append((r.choice(AND_REMOVE), f"Remove it with: sudo apt remove {name}", None))
        elif x < 0.80:
            out.append((r.choice(AND_SECTION), f"{name} is in the section {p['section']}.", None))
        elif x < 0.92:
            p = other
            out.append((r.choice(AND_WHAT).format(p["name"]), said(p["name"], p), None))
        else:
            q, a = TALK_PAIRS[2]
            out.append((r.choice(q), r.choice(a), None))
    return out


def with_thoughts(r, p, other):
    """One or several turns in thinking mode: only the last turn's thought is printed."""
    if r.random() < 0.7:
        return [forward(r, p, True)]
    out = [forward(r, p, True)]
    for q, a, _ in turns(r, p, other)[1:]:
        name = other["name"] if a.startswith(other["name"] + " is a ") else p["name"]
        out.append((q, a, r.choice(THOUGHTS).format(name, other["section"]) if name != p["name"] else "Small talk." if a in TALK_PAIRS[2][1] else f"It is still {name}."))
    return out


def shown(name, p):
    lines = [f"Package: {name}", f"Version: {p['version']}", f"Section: {p['section']}"]
    if p["homepage"]:
        lines.append(f"Homepage: {p['homepage']}")
    return "\n".join(lines + [f"Description: {p['short']}"])


def tool_sample(r, ps, p, index, thinking):
    """(tools, messages after the system message). Part of them describe packages that do not exist, so the answer must come from the result."""
    p = dict(p)
    if r.random() < 0.35:  # another package's data under this or a made-up name: reading, not recalling
        q = r.choice(ps)
        p["section"], p["short"], p["version"], p["homepage"] = q["section"], r.choice(ps)["short"], q["version"], q["homepage"]
        if r.random() < 0.5:
            p["name"] = made_up(r, ps)
    name = p["name"]
    t = r.choice if thinking else lambda x: None
    call = lambda tool, **args: [{"function": {"name": tool, "arguments": json.dumps(args)}}]
    think_show = ["The user asks about {0}. I will look it up.", "I should look up {0} in the package index.", "Let me check {0} with apt_show."]
    x = r.random()
    words = [w for w in set(re.findall(r"[a-z]{4,12}", p["short"])) if 2 <= len(index.get(w, ())) <= 60]
    if x < 0.12 and words:
        word = r.choice(sorted(words))
        found = r.sample(index[word], min(len(index[word]), r.randint(1, 3)))
        result = "\n".join(f"{f['name']} - {f['short']}" for f in found)
        q = r.choice(["Find a package for {}.", "Search for {}.", "Which packages have to do with {}?", "I need something for {}.", "Is there a package about {}?", "search {}"]).format(word)
        a = ("I found this package: " if len(found) == 1 else "I found these packages: ") + ", ".join(f["name"] for f in found) + "."
        m = [("apt_search", {"query": word}, f"I will search the index for {word}.", result, "The search found something.")]
    elif x < 0.18:
        q, a = forward(r, p)[0], f"There is no package named {name}."
        m = [("apt_show", {"name": name}, t(think_show) and t(think_show).format(name), "No package found.", "The package does not exist.")]
    else:
        y = r.random()
        if y < 0.72 or (y < 0.92 and not p["homepage"]):
            q, a = forward(r, p)[0], said(name, p)
        elif y < 0.82:
            q, a = r.choice(["What is the homepage of {}?", "homepage of {}", "Where is the website of {}?"]).format(name), f"The homepage of {name} is {p['homepage']}"
        elif y < 0.92:
            q, a = r.choice(["Which version of {} is there?", "What version does {} have?", "version of {}?"]).format(name), f"The version of {name} is {p['version']}"
        else:
            q, a = r.choice(["In which section is {}?", "Which section does {} belong to?"]).format(name), f"{name} is in the section {p['section']}."
        m = [("apt_show", {"name": name}, t(think_show) and t(think_show).format(name), shown(name, p), "The index has the answer.")]
    if thinking and m[0][2] is None:
        raise AssertionError
    tool, args, before, result, after = m[0]
    messages = [{"role": "user", "content": q},
                {"role": "assistant", "content": "", "reasoning_content": before, "tool_calls": call(tool, **args)},
                {"role": "tool", "content": result},
                {"role": "assistant", "content": a, "reasoning_content": after}]
    if r.random() < 0.25 and tool == "apt_show" and a.startswith(name + " is a"):
        if thinking:
            messages[1]["reasoning_content"] = messages[3]["reasoning_content"] = ""
        messages += [{"role": "user", "content": r.choice(AND_INSTALL)}, {"role": "assistant", "content": install(name), "reasoning_content": f"It is still {name}."}]
    return tool == "apt_search", messages


def made_up(r, ps):
    a, b = r.choice(ps)["name"], r.choice(ps)["name"]
    return re.sub(r"[^a-z0-9.+-]", "", (a[: r.randint(2, 6)] + b[-r.randint(2, 6):]).strip("-.+")) or "thing"


def short_text(text, limit):
    """The first sentences of a text, up to about limit characters."""
    if len(text) <= limit:
        return text
    cut = max(text.rfind(". ", 0, limit), text.rfind(".\n", 0, limit), text.rfind("\n", 0, limit))
    return text[: cut + 1].strip() if cut > limit // 3 else text[:limit].rsplit(" ", 1)[0]


def load(data):
    ps = [json.loads(x) for x in open(data / "packages.jsonl")]
    prose = [json.loads(x) for x in open(data / "text.jsonl")]
    manual = json.loads((data / "manual.json").read_text())
    r = random.Random(7)
    held = set(r.sample(sorted(p["name"] for p in ps if len(p["long"]) > 250), HELD_OUT))
    return ps, prose, manual, held


def commands(ps):
    """command -> package, popular ones last so that they win."""
    by_name = {p["name"]: p for p in ps}
    owner = {}
    for p in ps:
        for c in p["commands"]:
            if len(c) < 30 and (c not in owner or len(p["name"]) < len(owner[c]["name"])):
                owner[c] = p
    for p in ps:
        if p["name"] in p["commands"]:
            owner[p["name"]] = p
    owner.update({c: by_name[n] for c, n in ALIAS.items() if n in by_name})
    return owner


def samples(data, sets):
    """Yields (kind, prefix id or -1, pieces), a package's samples side by side (they compress well so)."""
    ps, prose, manual, held = load(data)
    by_name = {p["name"]: p for p in ps}
    owner = commands(ps)
    owned = {}
    for c, p in owner.items():
        owned.setdefault(p["name"], []).append(c)
    popular = {n for n in POPULAR if n in by_name}
    index = {}
    for p in ps:
        for w in set(re.findall(r"[a-z]{4,12}", p["short"])):
            index.setdefault(w, []).append(p)
    r = random.Random(1)
    prefixes = [(s, v) for s in TOOL_SYSTEMS for v in range(len(tool_variants()))]
    prefixes = [prefixes[i] for i in (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 3, 5, 11)]
    variants = tool_variants()
    for i, (s, v) in enumerate(prefixes):
        yield PREFIX, i, [(chat.BOS, False)] + list(chat.pieces([{"role": "system", "content": s, "tools": variants[v]}], False))
    both = [i for i, (_, v) in enumerate(prefixes) if len(variants[v]) == 2]
    plain = [i for i, (s, v) in enumerate(prefixes) if s == "" and v == 0]

    def tool(p, kind=TOOL):
        thinking = r.random() < 0.35
        if kind == TOOL and r.random() < 0.08:  # small talk and the apt command need no call
            qs, answers = r.choice(TALK_PAIRS)
            q, a = shuffle_case(r, r.choice(qs)), r.choice(answers)
            if r.random() < 0.5:
                q, a = shuffle_case(r, r.choice(INSTALL)).format(p["name"]), install(p["name"])
            return kind, r.randrange(len(prefixes)), list(chat.pieces([
                {"role": "user", "content": q}, {"role": "assistant", "content": a, "reasoning_content": "This needs no tool; I answer directly."}], thinking))
        needs_search, m = tool_sample(r, ps, p, index, thinking)
        at = r.choice(plain) if r.random() < 0.3 else r.choice(both if needs_search else range(len(prefixes)))
        return kind, at, list(chat.pieces(m, thinking))

    for p in ps:
        name = p["name"]
        times = 16 if name in popular else 1
        for n in range(sets):
            for _ in range(times):
                yield FORWARD, -1, chat_sample(r, [forward(r, p)])
                if r.random() < 0.55 or times > 1:
                    yield THINK, -1, chat_sample(r, with_thoughts(r, p, r.choice(ps)), True)
                if r.random() < 0.45 or times > 1:
                    yield TURNS, -1, chat_sample(r, turns(r, p, r.choice(ps)))
                if r.random() < 0.12 or times > 1:
                    think = r.random() < 0.3
                    yield REVERSE, -1, chat_sample(r, [(shuffle_case(r, r.choice(BY_TEXT).format(p["short"].rstrip("."))), f"That is the package {name}.", r.choice(TEXT_THOUGHTS).format(name))], think)
                if r.random() < 0.10 or times > 1 and r.random() < 0.5:
                    think = r.random() < 0.4
                    yield TURNS, -1, chat_sample(r, [(shuffle_case(r, r.choice(INSTALL)).format(name), install(name), r.choice(INSTALL_THOUGHTS).format(name))], think)
            own = owned.get(name, [])
            for c in (own if times > 1 else r.sample(own, min(len(own), 2))):
                for _ in range(10 if times > 1 and (len(own) < 8 or c == name or c in ALIAS) else 1):
                    t = [(r.choice(COMMAND).format(c), f"The command {c} comes with the package {name}.", r.choice(COMMAND_THOUGHTS).format(c, name))]
                    if r.random() < 0.2:
                        t.append((r.choice(AND_INSTALL), install(name), f"It is still {name}."))
                    yield REVERSE, -1, chat_sample(r, t, r.random() < 0.4)
            if p["long"] and name not in held and n % 2 == hash_of(name) % 2:
                text = short_text(p["long"], 700)
                if n % 4 < 2:
                    yield LONG, -1, chat_sample(r, [(r.choice(MORE).format(name), text, r.choice(MORE_THOUGHTS).format(name))], r.random() < 0.2)
                else:
                    yield LONG, -1, [(chat.BOS, False), (f"{name} ({p['section']}): {p['short']}\n{text}" + chat.EOS, True)]
            if r.random() < 0.22 or times > 1:
                for _ in range(3 if times > 1 else 1):
                    yield tool(p)
        if name in held:
            yield HELD_TEXT, -1, [(chat.BOS, False), (f"{name} ({p['section']}): {p['short']}\n{p['long']}" + chat.EOS, True)]
            yield tool(p, HELD_TOOL)
    for n in range(sets):
        for name, text in manual.items():
            q = shuffle_case(r, r.choice(["What does the command {} do?", "What does the {} command do?", "What is the command {}?", "man {}", "Explain the command {}."]).format(name))
            yield FORWARD, -1, chat_sample(r, [(q, f"The command {name}: {text.rstrip('.')}.", None)])
        for _ in range(40):
            for qs, answers in TALK_PAIRS:
                for q in qs:
                    thinking = r.random() < 0.3
                    yield TALK, -1, chat_sample(r, [(shuffle_case(r, q), r.choice(answers), "This is small talk or a general question; I answer directly." if thinking else None)], thinking)
    for i, text in enumerate(prose):
        paragraphs = text.split("\n")
        chunk, kind = [], HELD_TEXT if i % 25 == 3 else PROSE
        for x in paragraphs + [""]:
            if chunk and (not x or sum(map(len, chunk)) + len(x) > 3200):
                yield kind, -1, [(chat.BOS, False), ("\n".join(chunk)[:4000] + chat.EOS, True)]
                chunk = []
            chunk.append(x)


def hash_of(name):
    return sum(map(ord, name))


def tokenizer_text(data):
    """What the tokenizer is trained on: descriptions twice, names, long texts once, prose, and the chat's fixed wording."""
    ps, prose, manual, _ = load(data)
    r = random.Random(3)
    for p in ps:
        yield p["short"]
        yield p["short"]
        yield " " + p["name"]
        yield p["name"]
        if r.random() < 0.35:
            yield p["long"]
    yield from prose
    for _ in range(1500):
        yield chat.TOOL_TEXT % "\n".join(chat.dumps(t["function"]) for t in TOOLS)
        for x in WHAT + INSTALL + AND_INSTALL + COMMAND + BY_TEXT + MORE + SYSTEMS + THOUGHTS:
            yield x.replace("{}", "")
        p = r.choice(ps)
        yield said("x", p) + shown("x", p) + install("") + "I found these packages: The command comes with the package That is the package"
        for qs, answers in TALK_PAIRS:
            yield from answers


def main(data, tokenizer, out, sets=5):
    import numpy as np
    from tokenizers import Tokenizer
    t = Tokenizer.from_file(str(tokenizer))
    kinds, prefix, starts, tokens = [], [], [0], []
    total = 0

    def flush(batch):
        nonlocal total
        flat = [x for _, _, ps in batch for x in ps]
        ids = iter(t.encode_batch_fast([x for x, _ in flat], add_special_tokens=False))
        for kind, at, pieces in batch:
            kinds.append(kind), prefix.append(at)
            for _, spoken in pieces:
                a = np.asarray(next(ids).ids, np.uint16)
                tokens.append(a | 0x8000 if spoken else a)
                total += len(a)
            starts.append(total)

    batch = []
    for s in samples(pathlib.Path(data), int(sets)):
        batch.append(s)
        if len(batch) == 20000:
            flush(batch)
            batch = []
    flush(batch)
    arrays = {"tokens": np.concatenate(tokens), "starts": np.asarray(starts, np.uint32), "kind": np.asarray(kinds, np.uint8), "prefix": np.asarray(prefix, np.int16)}
    names = "FORWARD THINK TURNS LONG REVERSE TALK PROSE TOOL PREFIX HELD_TEXT HELD_TOOL".split()
    length = np.diff(starts)
    for k, name in enumerate(names):
        m = arrays["kind"] == k
        if m.any():
            print(f"{name}: {m.sum()} samples, {length[m].sum()} tokens, mean {length[m].mean():.0f}, longest {length[m].max()}", flush=True)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with lzma.open(out, "wb", preset=4) as f:
        f.write(buffer.getvalue())
    print(pathlib.Path(out).stat().st_size, "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
