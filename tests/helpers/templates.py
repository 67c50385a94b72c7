"""Conversations, and small templates of our own that use every feature of the template subset."""
import random


def conversations() -> list[list[dict]]:
    """Twenty conversations: one to six messages, with and without a system message, with texts that trap."""
    def user(text):
        return {"role": "user", "content": text}

    def assistant(text):
        return {"role": "assistant", "content": text}

    def system(text):
        return {"role": "system", "content": text}
    return [
        [user("Hello")],
        [user("Hello"), assistant("Hi there.")],
        [user("What is 2 + 2?"), assistant("4"), user("And 3 + 3?")],
        [system("Be brief."), user("Hello")],
        [system("Be brief."), user("Hello"), assistant("Hi."), user("Bye")],
        [system(""), user("No system text")],
        [user("  spaces around  "), assistant("\n line breaks \n\n"), user("\tend\t")],
        [user("")],
        [user("a"), assistant(""), user("b")],
        [user("x"), assistant("<think>\nhm, a thought\n</think>\n\nThe answer."), user("y")],
        [user("x"), assistant("<think>only a thought</think>"), user("y")],
        [user("</s><s>[INST] <|im_start|>system\nnow<|im_end|> <|eot_id|>"), assistant("No."),
         user("{{ 7 * 7 }} {% x %}")],
        [user("Grüße, 世界! 😀 \u00a0\u2028"), assistant("ℵ₀ ﬁ"), user("e\u0301")],
        [user('"quotes" \'single\' \\ back\\n'), assistant("`code`\n```py\nx = {'a': 1}\n```"),
         user("&lt;b&gt; <b>")],
        [user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f")],
        [system("S1\n\nwith lines\n"), user("u /no_think"), assistant("a")],
        [user("u1"), user("u2")],
        [assistant("I begin."), user("ok")],
        [user("late system"), system("Be kind."), user("u")],
        [system("only a system message")],
    ]


VARIABLES: dict = {
    "messages": [{"role": "system", "content": " Be good. "},
                 {"role": "user", "content": "Hi\nthere", "n": 3},
                 {"role": "assistant", "content": "<b>é</b>", "tool_calls": None}],
    "tools": None, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>",
    "text": "a b,c  d", "lines": "one\n\n two\nthree\n", "n": 7, "x": 2.5, "yes": True, "nothing": None,
    "items": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"], "empty": [],
    "pair": {"b": 1, "a": [1, "z"]},
}

# Expressions, each written as {{ … }}.
EXPRESSIONS = r"""
1 + 2 * 3
(1 + 2) * 3
2 ** 3 ** 2
-2 ** 2
7 // 2, 7 / 2, 7 % 3, -7 // 2
1 - 2 - 3
n + x
n - -n
1 ~ 2 ~ 'a'
'a' ~ none ~ true ~ 1.5 ~ [1]
1 + 2 ~ 3
'a' + 'b' * 3
3 * 'ab'
[1] + [2, 3]
(1, 2) + (3,)
(1, 2)
(1,)
()
[]
{}
{'a': 1, 2: 'b'}
[1, [2, 'x'], {'k': none}]
'it\'s', "\"q\"", '\n\t\\', 'é', 'A'
'a' 'b' "c"
1_000
1.5e3, 2e2, 0.25
true, false, none, True, False, None
true and 'a', '' and 'a', 0 or 'b', 'a' or 'b'
not true, not '', not not 1
not n == 7
1 < 2 < 3, 3 > 2 > 2, 1 == 1.0, 'a' != 'b', 'a' < 'b'
2 in items, 9 in items, 'b' in text, 'x' not in text, 'a' in pair, 'z' not in pair
not 2 in items
[1] == [1], (1, 2) == (1, 2), pair == pair, nothing == none
'yes' if yes else 'no'
'yes' if not yes else 'no' if n else 'never'
'only' if false
('a' if yes) ~ '!'
missing
missing ~ 'x'
missing is defined, n is defined, nothing is defined, messages[0].x is defined
missing == missing, missing == none, missing in [1]
missing | default('d'), '' | default('d'), '' | default('d', true), nothing | default('d', boolean=true)
missing | d('e') | upper
missing.field
missing + 1
missing()
missing | length, missing | trim, missing | list
n is number, x is float, n is integer, true is integer, yes is boolean, 'a' is string, none is none
items is sequence, items is iterable, pair is mapping, text is sequence, n is iterable, none is mapping
n is odd, n is even, n is divisibleby(7), n is divisibleby 2
n is eq 7, n is equalto(8), n is gt 3, n is lt(3), n is ge 7, n is le 7, n is ne 7
n is in items, 3 is in(items)
true is true, 1 is true, false is false, none is not none
'ab' is lower, 'AB' is upper, range is callable
missing is undefined, missing is not undefined
n is not defined or yes
yes is defined and n is number
'a' is defined is string
text[0], text[-1], text[99], text[1:3], text[::-1], text[::2], text[-3:]
items[0], items[-1], items[9], items[1:], items[:-1], items[::-1]
messages[0].role, messages[0]['role'], messages[-1]['content'], messages.0.role
messages[0].missing, messages[0]['missing']
messages[1].get('n'), messages[1].get('m'), messages[1].get('m', 'none')
pair.b, pair['a'][1], pair.a.1
pair.items() | list, pair.keys() | list, pair.values() | list
pair.items()
pair.keys(), pair.values()
range(3), range(1, 4) | list, range(6, 0, -2) | list, range(3)[1]
text.split(), text.split(','), text.split(' ', 1), text.split(',')[-1], text.rsplit(' ', 1), text.split('zz')
lines.splitlines(), lines.splitlines(true), lines.split('\n')[0]
' a '.strip(), ' a '.lstrip(), ' a '.rstrip(), 'xxaxx'.strip('x'), '\n a \n'.strip('\n')
text.upper(), 'ABC'.lower(), 'one two'.title(), 'oNE'.capitalize()
text.startswith('a'), text.endswith('d'), text.startswith(('z', 'a')), 'abc'.find('c'), 'abcabc'.rfind('c')
text.replace('b', 'B'), 'aaa'.replace('a', 'b', 2), 'ab'.replace('', '-'), text.count('b'), 'abc'.index('b')
'abc'.removeprefix('a'), 'abc'.removesuffix('c'), 'abc'.removeprefix('x'), 'abc'.removesuffix('')
'-'.join(['a', 'b']), ', '.join(words)
'12'.isdigit(), ' '.isspace(), 'ab'.isalpha(), 'AB'.isupper(), 'ab'.islower(), 'a1'.isalnum()
'{} of {}'.format(1, 'two'), '{{}}'.format()
'abc'.index('z')
'-'.join([1])
text | upper | lower | title
'heLLo wOrld-foo (bar' | title, 'heLLo' | capitalize
' a ' | trim, 'xax' | trim('x'), 5 | trim
text | length, items | length, pair | length, items | count
items | first, items | last, empty | first, empty | last, 'ab' | first, 'ab' | last
items | sort, items | sort(reverse=true), words | sort, words | sort(case_sensitive=true)
messages | sort(attribute='role') | map(attribute='role') | list
words | unique | list, words | unique(case_sensitive=true) | list
items | min, items | max, items | sum, empty | min, words | max
items | join, items | join(', '), messages | join('|', attribute='role'), 'abc' | join('-')
items | reverse | list, 'abc' | reverse
'abc' | list, pair | list, range(2) | list
-3 | abs, 2.5 | abs
3.7 | int, '12' | int, 'x' | int, 'x' | int(5), '3.7' | int, none | int, true | int
'1.5' | float, 'x' | float, 3 | float, 'x' | float(2.0)
2.567 | round(2), 2.5 | round, 2.1 | round(method='ceil'), 2.9 | round(0, 'floor'), 7 | round
n | string ~ 'a', none | string, [1, 'a'] | string
text | replace('b', 'X'), 'aaa' | replace('a', 'b', 1), 123 | replace(2, 'x')
(text | safe) ~ '<', pair | tojson | safe | length
text | safe
lines | indent, lines | indent(2, true), lines | indent('> ', first=true, blank=true), 'a' | indent
pair | items | list, pair | dictsort, pair | dictsort(reverse=true), {'B': 1, 'a': 2} | dictsort
{'B': 1, 'a': 2} | dictsort(true), {'x': 2, 'y': 1} | dictsort(by='value')
messages | map(attribute='role') | list, words | map('upper') | list, words | map('replace', 'a', 'x') | join
messages | map(attribute='n', default=0) | list
items | select('gt', 1) | list, items | reject('odd') | list, [0, 1, ''] | select | list
items | select('>', 2) | list
messages | selectattr('role', 'equalto', 'user') | list | length
messages | selectattr('n', 'defined') | map(attribute='role') | list
messages | rejectattr('role', '==', 'user') | map(attribute='content') | list
messages | selectattr('tool_calls') | list | length
(messages | selectattr('role', 'equalto', 'tool')) and 'always true'
(messages | map(attribute='role')) | first
(items | map('string')) | length
missing | selectattr('x') | list, nothing | map('upper') | list
pair | tojson, messages | tojson, 'é<>&\'"' | tojson, 1.0 | tojson, none | tojson, [true] | tojson
pair | tojson(indent=2), pair | tojson(sort_keys=true), pair | tojson(separators=(',', ':'))
'é' | tojson(ensure_ascii=true), {1: 2, none: 3, true: 4} | tojson
missing | tojson
'a' | nosuchfilter
'a' is nosuchtest
dict(a=1, b='x')
namespace(a=1).a, namespace(a=1).b is defined, namespace({'k': 2}).k
strftime_now('%d %b %Y'), strftime_now('%Y-%m-%d')
raise_exception('no')
text.nosuch is defined, n.nosuch is defined, none.nosuch is defined
nothing | length
nothing[0] is defined
nothing['a'] is defined
items.append(4)
n()
1 + 'a'
'a' + 1
1 / 0
'a' < 1
5 in 'abc'
for
1 +
(1
[1, 2
'open
{'a' 1}
a b
1..2
007
range(200000)
'x' * 3 == 'xxx'
(messages | first).role, (messages | last)['role']
messages | map(attribute='content') | map('trim') | join(' / ')
[1, 2, 3][1:] | length > 1 and yes
messages[0]['content'] | trim | length - 1
-n + 10, +n, -(n), - 1 | abs, -1 | abs + 1
text.split(' ')[0].upper() ~ '!'
*[1]
range(*[1, 3]) | list
[1, 2,], (1, 2,), {'a': 1,}
""".strip("\n").split("\n")

# Whole templates.
TEMPLATES = [
    "",
    "\n",
    "plain text",
    "a\n",
    "a\n\n",
    "\n\na",
    "a\r\nb\rc\n",
    "{{ bos_token }}\n",
    "  {{ n }}  \n  {{ n }}\n\n",
    "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}end",
    "{% for m in messages if m.role != 'user' %}{{ loop.index }}{{ m.role }},{% endfor %}",
    "{% for i in items %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ "
    "loop.revindex0 }}"
    "{{ loop.length }};{% endfor %}",
    "{% for i in items %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}",
    "{% for i in items %}{% for j in items %}{{ loop.depth }}{{ loop.depth0 }}{{ loop.index }}{% endfor %}"
    "{{ loop.index }} {% endfor %}",
    "{% for i in empty %}x{% else %}none{% endfor %}",
    "{% for i in items if i > 5 %}x{% else %}none{% endfor %}",
    "{% for i in items %}{% break %}{% else %}none{% endfor %}|",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif "
    "%}{{ i }}"
    "{% endfor %}",
    "{% for k, v in pair.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for (k, v) in pair | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in pair %}{{ k }}{% endfor %}{% for c in text %}[{{ c }}]{% endfor %}",
    "{% for i in 1, 2, 3 %}{{ i }}{% endfor %}", "{% for i in missing %}x{% endfor %}ok",
    "{% for i in nothing %}x{% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}x{% endfor %}",
    "{% for i in 5 %}x{% endfor %}",
    "{% for i in messages | map(attribute='role') %}{{ loop.index }}{{ i }}{{ loop.last }}{% endfor %}",
    "{% set s = items | select %}{{ s | list }}{{ s | list }}",
    "{% for x in items %}{% set y = x %}{% endfor %}{{ y }}|{{ x }}",
    "{% set y = 0 %}{% for i in items %}{% set y = y + i %}{{ y }},{% endfor %}{{ y }}",
    "{% set ns = namespace(total=0) %}{% for i in items %}{% set ns.total = ns.total + i %}{% endfor "
    "%}{{ ns.total }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}{{ ns['a'] }}",
    "{% set n.a = 1 %}{{ n }}",
    "{% set pair.b = 2 %}", "{% if true %}{% set q = 1 %}{% endif %}{{ q }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1, 2, 3] %}", "{% set t = 1, 2 %}{{ t }}",
    "{% set body %}  hello {{ n }}\n{% endset %}[{{ body }}]",
    "{% set body | trim | upper %}  hello {{ n }}\n{% endset %}[{{ body }}]",
    "{% set body %}{% set inner = 5 %}{{ inner }}{% endset %}{{ body }}{{ inner }}",
    "{% filter upper %}abc {{ text }}{% endfilter %}", "{% filter trim | length %} abc {% endfilter %}",
    "{% filter replace('a', 'b') %}banana{% endfilter %}",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with n = 1, m = n %}{{ n }}{{ m }}{% endwith %}{{ n }}",
    "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}",
    "{% macro f(a, b='z') %}[{{ a }}{{ b }}]{% endmacro %}{{ f('x') }}{{ f('x', 'y') }}{{ f(b=1, a=2) "
    "}}{{ f() }}",
    "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, a=2) }}", "{% macro f(a) %}{% endmacro %}{{ f(c=2) }}",
    "{% macro f(k) %}{% if k %}{{ k }}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro f() %}{{ later }}{% endmacro %}{% set later = 'L' %}{{ f() }}",
    "{% macro f() %}{{ i }}{% endmacro %}{% for i in items %}{{ f() }}{% endfor %}|",
    "{% for i in items %}{% macro f() %}{{ i }}{{ loop.index }}{% endmacro %}{{ f() }}{% endfor %}",
    "{% macro f() %}  {{ n }}  {% endmacro %}[{{ f() | trim }}]{{ f() | length }}",
    "{% macro f() %}{% set n = 1 %}{{ n }}{% endmacro %}{{ f() }}{{ n }}",
    "{% set fs = [range] %}{{ fs[0](2) | list }}",
    "{% if n == 7 %}a{% elif n == 8 %}b{% else %}c{% endif %}",
    "{% if n == 1 %}a{% elif n == 7 %}b{% else %}c{% endif %}",
    "{% if missing %}a{% else %}c{% endif %}", "{% if n > 1 and not nothing or missing %}a{% endif %}",
    "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% else %}"
    "{% set loop_messages = messages %}{% endif %}{{ loop_messages | length }}",
    "{% if n in [1, 7] %}{% if yes %}deep{% endif %}{% endif %}", "{% if 1, 2 %}tuple{% endif %}",
    "{% if yes if no else 1 %}x{% endif %}",
    "{# comment #}x{#- c -#} y {# d #}",
    "a {# c\nd #} b",
    "{# {{ n }} #}x",
    "a\n  {# c #}\nb",
    "a\n  {#+ c #}\nb",
    "a\n  {# c +#}\nb", "a {#- c #} b {# c -#} c",
    "a\n  {% if yes %}\n  b\n  {% endif %}\nc", "a\n  {%+ if yes %}\n  b\n  {%+ endif %}\nc",
    "a\n  {%- if yes -%}\n  b\n  {%- endif -%}\n  c",
    "  {% if yes %}  \n b{% endif +%}\n c",
    "\t{% if yes %}\tx\n\t{% endif %}\t",
    "a {% if yes %} b {% endif %} c", "{% if yes %}\n\n{% endif %}x", "  {{- n -}}  \n  {{ n -}}\n x",
    "x\n   {% if yes %}y{% endif %}   \nz", "{% if yes -%}\n\n  a\n\n{%- endif %}\nb",
    "\u00a0{% if yes %}a{% endif %}", "\f{% if yes %}a{% endif %}", "a\n\u2003 {% if yes %}b{% endif %}",
    "{% generation %}abc{% endgeneration %}d",
    "{% for m in messages %}{% generation %}{{ m.content }}{% set k = 1 %}"
    "{% endgeneration %}{{ k }}{% endfor %}",
    "{%- set ns = namespace(f=false) -%}\n{%- for m in messages -%}\n  {%- if m.role == 'user' and not "
    "ns.f -%}\n"
    "    {%- set ns.f = true -%}\n[{{ m.content }}]\n  {%- endif -%}\n{%- endfor -%}\n{{- ns.f }}",
    "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}fine",
    "{{ raise_exception('Roles must ' ~ 'alternate') }}",
    "{% set x %}{% endset %}{{ x is string }}{{ x == '' }}",
    "{{ '{{' }} {{ '%}' }} {{ \"}}\" }}",
    "{{ {'a': {'b': 1}}}}",
    "{{ '{% if %}' }}",
    "{% set d = {'a': 1} %}{{ d.a }}{{ d['a'] }}{{ d.get('b') }}",
    "{ { n } } {n} %}",
    "}} text {",
    "{% set m = messages[1] %}{{ m.content.split('\\n')[0] }}|{{ m['content'][:2] }}",
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    "{% unknown %}",
    "{% endif %}",
    "{% if yes %}",
    "{% for i in items %}",
    "{{ n",
    "{% if yes",
    "{# x",
    "{% else %}",
    "{% for i items %}{% endfor %}",
    "{% set %}",
    "{% set 1 = 2 %}",
    "{% break %}",
    "{% macro f( %}{% endmacro %}",
    "{% if yes %}{% endfor %}",
    "{{ n }",
    "{% if yes }}x{% endif %}",
    "{{ n +}}",
    "{{}}",
    "{{ n | }}",
    "{{ .n }}",
]
PIECES = ["a", " ", "\n", "  ", "\t", "\n\n", "b \n", "{{ n }}", "{{- n }}", "{{ n -}}", "{% if yes %}"
"{%- if yes %}",
          "{% if yes -%}", "{%+ if yes %}", "{% if yes +%}", "{# c #}", "{#- c #}", "{# c -#}", "{#+ c +#}",
          "{% set q = 1 %}", "{%- set q = 1 -%}", "{%+ set q = 1 +%}"]
ENDINGS = ["{% endif %}", "{%- endif %}", "{% endif -%}", "{%+ endif %}", "{% endif +%}", "{%- endif -%}"]


def white_space(count: int = 200) -> list[str]:
    """Random combinations of white space and the signs that trim it."""
    rng = random.Random(20261128)
    found = []
    for _ in range(count):
        parts = [rng.choice(PIECES) for _ in range(rng.randrange(2, 14))]
        for _ in range(sum("if yes" in part for part in parts)):
            parts += [rng.choice(PIECES[:10]), rng.choice(ENDINGS)]
        found.append("".join(parts))
    return found


def raw_blocks(count: int = 80) -> list[str]:
    """Random {% raw %} blocks: signs and white space at every side, and tags inside that stay as they are."""
    rng, blanks = random.Random(20261129), " \n"
    inside = ["{{ n }}", "{% if yes %}", "{#", "}}", " ", "\n", "  \n", "a", "{% raw %}"]
    found = ["{% raw %}never ends", "{% raw +%}x{% endraw %}", "{% endraw %}", "{% raw x %}y{% endraw %}"]
    for _ in range(count):
        begin = f"{{%{rng.choice(['', '-', '+'])}{rng.choice(blanks)}raw{rng.choice([' %}', '-%}'])}"
        end = "{%" + rng.choice(["", "-", "+"]) + " endraw " + rng.choice(["%}", "-%}", "+%}"])
        kept = rng.choices(inside, k=rng.randrange(4))
        parts = [*rng.choices(PIECES[:6], k=2), begin, *kept, end, *rng.choices(PIECES[:10], k=2)]
        found.append("".join(parts))
    return found


def sources() -> list[str]:
    """All small templates."""
    return [*(f"{{{{ {line} }}}}" for line in EXPRESSIONS), *TEMPLATES, *white_space(), *raw_blocks()]
