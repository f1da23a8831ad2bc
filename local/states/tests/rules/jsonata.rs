//! JSONata as Step Functions has it, compared expression by expression with the reference, npm's jsonata 2.0.6.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use slipway_states::expression::Query;

use crate::support::{machine, pass, run};

/// What the expressions read.
fn document() -> Value {
    json!({
        "name": "demo", "empty": "", "zero": 0, "none": null, "no": false, "count": 3, "price": 0.0336,
        "tags": { "team": "platform", "env": "dev" },
        "zones": ["eu-west-1a", "eu-west-1b", "eu-west-1c"],
        "findings": [
            { "severity": "error", "field": "/network", "n": 2 }, { "severity": "warning", "field": "/core", "n": 10 },
            { "severity": "error", "field": "/access", "n": 1 },
        ],
        "pools": [
            { "name": "x86", "architecture": "amd64", "capacity": ["spot", "on-demand"] },
            { "name": "graviton", "architecture": "arm64", "capacity": ["spot"] },
        ],
        "one": [{ "id": 1 }], "nested": [[1, 2], [3]], "nothing": [], "arn": "arn:aws:eks:eu-west-1:111122223333:cluster/demo",
        "cause": "{\"errorType\":\"NetworkFailed\",\"errorMessage\":\"no route\"}", "when": "2026-11-22T19:00:00.000Z",
    })
}

/// `$d` is `$states.input`. Every kind of expression that a machine of ours may hold.
const EXPRESSIONS: &[&str] = &[
    // paths, filters, singletons
    "$d.name",
    "$d.missing",
    "$d.tags.team",
    "$d.zones[0]",
    "$d.zones[-1]",
    "$d.zones[5]",
    "$d.zones[[0..1]]",
    "$d.findings.severity",
    "$d.findings[severity = 'error']",
    "$d.findings[severity = 'warning']",
    "$d.findings[severity = 'warning'][]",
    "$d.findings[severity = 'none']",
    "$d.findings[severity = 'none'][]",
    "$d.pools.capacity",
    "$d.pools[0].capacity",
    "$d.pools[1].capacity",
    "$d.one.id",
    "$d.one[0]",
    "$d.nested",
    "$d.nested[0]",
    "$d.nested.$",
    "[$d.pools.name]",
    "[$d.one.id]",
    "[$d.missing]",
    "$d.*[0]",
    "$d.tags.*",
    "$d.**.id",
    "$d.pools[name = 'x86'].architecture",
    "$d.pools[architecture in ['arm64']].name",
    "$d.`name`",
    "$d.'name'",
    "$d.pools.{ 'n': name, 'arm': architecture = 'arm64' }",
    "$d.pools{ name: architecture }",
    "$d.findings{ severity: $sum(n) }",
    "$d.findings^(n).field",
    "$d.findings^(>n).field",
    "$d.findings^(severity, >n).n",
    "$d.pools@$p.capacity.{ 'pool': $p.name, 'way': $ }",
    "$d.pools#$i.{ 'i': $i, 'n': name }",
    "$d.pools.name.$uppercase($)",
    // undefined, null, booleans
    "$exists($d.missing)",
    "$exists($d.none)",
    "$d.none",
    "$d.none = null",
    "$d.missing = null",
    "$not($d.missing)",
    "$boolean($d.nothing)",
    "$boolean($d.empty)",
    "$boolean($d.zero)",
    "$boolean([0])",
    "$boolean([0, 1])",
    "$boolean($d.tags)",
    "$d.missing ? 1 : 2",
    "$d.zero ? 1 : 2",
    "$d.no ? 1",
    "{ 'a': 1, 'b': $d.missing }",
    "[1, $d.missing, 2]",
    "$d.missing and true",
    "$d.name and $d.count",
    "$d.missing or false",
    "$d.count > 2 and $d.name = 'demo'",
    "$d.missing & 'x'",
    "$d.count & ''",
    "$d.no & ''",
    "$d.none & ''",
    "$d.zones & ''",
    "$d.missing > 1",
    "$d.name > 1",
    "$d.missing in $d.zones",
    "'eu-west-1a' in $d.zones",
    // numbers
    "1 / 3",
    "10 % 3",
    "-$d.count",
    "$d.price * 24 * 30",
    "0.1 + 0.2",
    "1e21",
    "1 / 0",
    "5 / 2",
    "2 * 3.0",
    "$round(2.5)",
    "$round(3.5)",
    "$round(1234.5678, 2)",
    "$floor(-1.5)",
    "$power(2, 10)",
    "$sqrt(-1)",
    "$number('0x10')",
    "$number('1e3')",
    "$number('abc')",
    "$number(true)",
    "$sum([1, 2.5])",
    "$sum([])",
    "$average($d.findings.n)",
    "$max($d.findings.n)",
    "$max([])",
    "$min($d.missing)",
    "$count($d.findings[severity = 'error'])",
    "$count($d.missing)",
    "$count($d.name)",
    "$count([$d.findings[severity = 'none']]) > 0",
    "$string(1.0)",
    "$string(1e100)",
    "$formatNumber(1234.5, '#,##0.00')",
    "$formatBase(255, 16)",
    "$formatInteger(1999, 'I')",
    "$parseInteger('12', '00')",
    "[1..5]",
    "[3..1]",
    "$d.count + $d.missing",
    "'1' + 1",
    "9007199254740993",
    "1000000 * 1000000",
    // strings
    "$d.name & '-' & $d.count",
    "$substring($d.name, 1)",
    "$substring($d.name, -2)",
    "$substring($d.name, 0, 2)",
    "$substring($d.missing, 0, 1)",
    "$substringBefore($d.arn, ':cluster')",
    "$substringAfter($d.arn, 'cluster/')",
    "$split($d.arn, ':')[4]",
    "$split($d.arn, /[:\\/]/)",
    "$join($d.zones, ',')",
    "$join($d.missing)",
    "$contains($d.name, 'em')",
    "$contains($d.name, /^d/)",
    "$match($d.name, /(.)m/)",
    "$match($d.name, /x/)",
    "$replace($d.name, 'e', 'E')",
    "$replace($d.name, /(d)(e)/, '$2$1')",
    "$uppercase($d.name)",
    "$trim('  a  b ')",
    "$pad('7', -3, '0')",
    "$length('€😀')",
    "$string($d.tags)",
    "$string($d.tags, true)",
    "$string('x')",
    "$string($d.missing)",
    "$base64encode('slipway')",
    "$base64decode('c2xpcHdheQ==')",
    "$encodeUrlComponent('a b/c')",
    "$decodeUrl('a%20b')",
    "$lowercase(1)",
    // arrays and objects
    "$append($d.zones, 'x')",
    "$append($d.missing, ['x'])",
    "$append(1, 2)",
    "$merge([$d.tags, { 'env': 'prod' }])",
    "$merge($d.pools).name",
    "$merge([])",
    "$keys($d.tags)",
    "$keys($d.pools)",
    "$keys({})",
    "$lookup($d.tags, 'env')",
    "$lookup($d.pools, 'name')",
    "$spread($d.tags)",
    "$each($d.tags, function($v, $k) { $k & '=' & $v })",
    "$sift($d.tags, function($v, $k) { $k = 'env' })",
    "$map($d.zones, function($z, $i) { $i & $z })",
    "$map($d.one, function($o) { $o.id })",
    "$map($d.nothing, function($o) { $o })",
    "$map($d.missing, $uppercase)",
    "$filter($d.findings, function($f) { $f.n > 1 }).field",
    "$filter($d.zones, function($z) { $z = 'x' })",
    "$single($d.pools, function($p) { $p.name = 'x86' }).architecture",
    "$single($d.pools, function($p) { true })",
    "$reduce($d.findings.n, function($a, $b) { $a + $b })",
    "$reduce([], function($a, $b) { $a }, 7)",
    "$sort($d.findings.n)",
    "$sort($d.zones, function($a, $b) { $a < $b })",
    "$sort([3, 'a'])",
    "$reverse($d.zones)",
    "$distinct([1, 2, 1, '1'])",
    "$zip([1, 2], ['a', 'b', 'c'])",
    "$type($d.none)",
    "$type($d.nothing)",
    "$type($d.missing)",
    "$type($sum)",
    "$d.pools ~> |$|{ 'seen': true }, ['capacity']|",
    "$d.zones ~> $join('-')",
    "($f := $uppercase ~> $trim; $f(' a '))",
    "$d.tags = { 'env': 'dev', 'team': 'platform' }",
    "$d.zones = ['eu-west-1a', 'eu-west-1b', 'eu-west-1c']",
    "$merge([{ 'done': false, 'retryAfterSeconds': 15 }, { 'waited': 0 }])",
    "$merge([{ 'a': 1 }, { 'b': 2 }]).b",
    // blocks, functions, errors, time
    "($a := 1; $b := $a + 1; [$a, $b])",
    "($x := 1; ($x := 2); $x)",
    "($f := function($n) { $n <= 1 ? 1 : $n * $f($n - 1) }; $f(10))",
    "(function($x) { $x * 2 })(21)",
    "($plus := function($a, $b) { $a + $b }; $plus(?, 10)(1))",
    "$error('boom')",
    "$assert(1 = 2, 'no')",
    "$assert(1 = 1)",
    "$nothing",
    "$nobody(1)",
    "$uppercase(1, 2)",
    "$substring(1)",
    "function($x) { $x }",
    "$toMillis($d.when)",
    "$toMillis('2026-11-22')",
    "$fromMillis(0)",
    "$fromMillis(1767225600000, '[Y0001]-[M01]-[D01]')",
    "$fromMillis($toMillis($d.when) + 3600000)",
    "$toMillis('nonsense')",
    // functions of Step Functions
    "$parse($d.cause).errorMessage",
    "$parse($d.name)",
    "$partition([1, 2, 3, 4, 5], 2)",
    "$range(0, 10, 5)",
    "$range(5, 1, -2)",
    "($c := $exists($d.cause) ? $d.cause : 'none'; $m := $substring($c, 0, 1) = '{' ? $parse($c).errorMessage; $exists($m) ? $m : $c)",
];

/// Evaluates every expression with the reference and prints `{value}`, `{undefined}` or `{error}` for each.
const REFERENCE: &str = r"
const jsonata = require(process.argv[1]);
const read = require('fs').readFileSync(0, 'utf8');
const { document, expressions } = JSON.parse(read);
const functions = {
  parse: text => JSON.parse(text),
  partition: (list, size) => { const out = []; for (let i = 0; i < list.length; i += size) out.push(list.slice(i, i + size)); return out; },
  range: (first, last, step) => { const out = []; for (let n = first; step > 0 ? n <= last : n >= last; n += step) out.push(n); return out; },
};
(async () => {
  const answers = [];
  for (const text of expressions) {
    try {
      const value = await jsonata(text).evaluate(undefined, { d: document, ...functions });
      // Neither a function nor an infinity is JSON: Step Functions refuses them.
      const refused = typeof value === 'number' && !Number.isFinite(value);
      const nothing = value === undefined || typeof value === 'function' || value && value._jsonata_lambda;
      if (refused) answers.push({ error: true });
      else answers.push(nothing ? { undefined: true } : { value: JSON.parse(JSON.stringify(value)) });
    } catch (error) { answers.push({ error: true }); }
  }
  console.log(JSON.stringify(answers));
})();
";

fn node() -> (PathBuf, PathBuf) {
    let cache = std::env::var_os("SLIPWAY_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/slipway"),
        PathBuf::from,
    );
    let (node, package) = (cache.join("node/bin/node"), cache.join("node/node_modules/jsonata"));
    for path in [&node, &package] {
        assert!(path.exists(), "{} is missing: run `python3 local/setup.py` once, then test again", path.display());
    }
    let manifest = std::fs::read_to_string(package.join("package.json")).expect("jsonata has a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("the manifest is JSON");
    assert_eq!(manifest["version"], "2.0.6", "Step Functions has JSONata 2.0.6; run `python3 local/setup.py` again");
    (node, package)
}

fn reference() -> Vec<Value> {
    let (node, package) = node();
    let mut child = Command::new(node)
        .args(["-e", REFERENCE])
        .arg(package)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node starts");
    let cases = json!({ "document": document(), "expressions": EXPRESSIONS }).to_string();
    child.stdin.take().expect("stdin is piped").write_all(cases.as_bytes()).expect("node reads");
    let output = child.wait_with_output().expect("node ends");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("node answers JSON")
}

/// What the engine makes of an expression, in the reference's words.
fn ours(expression: &str) -> Value {
    let source = format!("{{% ($d := $states.input; {expression}) %}}");
    let state = json!({ "Only": pass(json!({ "Output": source })) });
    let machine = machine("Only", state);
    match run(&machine, &document()).result {
        Ok(value) => json!({ "value": value }),
        Err(failure) if failure.cause.ends_with("returned nothing (undefined)") => json!({ "undefined": true }),
        Err(_) => json!({ "error": true }),
    }
}

/// Numbers compare as doubles: JSON does not tell 3 from 3.0.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => left == right,
    }
}

#[test]
fn every_expression_gives_what_jsonata_2_0_6_gives() {
    let reference = reference();
    assert_eq!(reference.len(), EXPRESSIONS.len());
    let wrong: Vec<String> = EXPRESSIONS
        .iter()
        .zip(&reference)
        .map(|(expression, wanted)| (expression, wanted, ours(expression)))
        .filter(|(_, wanted, found)| !same(wanted, found))
        .map(|(expression, wanted, found)| format!("{expression}\n  jsonata 2.0.6: {wanted}\n  here:          {found}"))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), EXPRESSIONS.len(), wrong.join("\n"));
}

/// The engine has the functions of 2.0.6 and no younger ones.
#[test]
fn there_are_no_functions_younger_than_2_0_6() {
    for function in jlens_core::function_catalog().iter().filter(|function| function.name != "eval") {
        let source = format!("$type(${})", function.name);
        assert!(Query::compile(&source).is_ok(), "{}", function.name);
        assert!(FUNCTIONS_OF_2_0_6.contains(&function.name), "${} is not in JSONata 2.0.6", function.name);
    }
}

/// From JSONata's function library reference, version 2.0.
const FUNCTIONS_OF_2_0_6: &[&str] = &[
    "abs",
    "append",
    "assert",
    "average",
    "base64decode",
    "base64encode",
    "boolean",
    "ceil",
    "clone",
    "contains",
    "count",
    "decodeUrl",
    "decodeUrlComponent",
    "distinct",
    "each",
    "encodeUrl",
    "encodeUrlComponent",
    "error",
    "eval",
    "exists",
    "filter",
    "floor",
    "formatBase",
    "formatInteger",
    "formatNumber",
    "fromMillis",
    "join",
    "keys",
    "length",
    "lookup",
    "lowercase",
    "map",
    "match",
    "max",
    "merge",
    "millis",
    "min",
    "not",
    "now",
    "number",
    "pad",
    "parseInteger",
    "power",
    "random",
    "reduce",
    "replace",
    "reverse",
    "round",
    "shuffle",
    "sift",
    "single",
    "sort",
    "split",
    "spread",
    "sqrt",
    "string",
    "substring",
    "substringAfter",
    "substringBefore",
    "sum",
    "toMillis",
    "trim",
    "type",
    "uppercase",
    "zip",
];

fn evaluate(expression: &str) -> Value {
    let states = json!({ "Only": pass(json!({ "Output": format!("{{% {expression} %}}") })) });
    run(&machine("Only", states), &json!({})).result.unwrap()
}

/// Guide, "JSONata functions provided by Step Functions".
#[test]
fn step_functions_adds_functions_of_its_own() {
    let hash = evaluate("$hash('slipway', 'SHA-256')");
    assert_eq!(hash.as_str().unwrap().len(), 64);
    let uuid = evaluate("[$uuid(), $uuid()]");
    assert_ne!(uuid[0], uuid[1]);
    let text = uuid[0].as_str().unwrap();
    assert!(text.len() == 36 && text.as_bytes()[14] == b'4' && b"89ab".contains(&text.as_bytes()[19]), "{text}");
    let random = evaluate("[$random(), $random(), $random(7), $random(7)]");
    assert_ne!(random[0], random[1]);
    assert_eq!(random[2], random[3]);
    assert!((0.0..1.0).contains(&random[0].as_f64().unwrap()));
    assert_eq!(evaluate("$millis()"), json!(1_767_225_600_000_i64));
    assert_eq!(evaluate("$now()"), "2026-01-01T00:00:00.000Z");
}

/// What other code learns about an expression without running it.
#[test]
fn a_query_names_its_free_variables() {
    let query = Query::compile("($f := function($x) { $x + $offset }; $map($states.input.list, $f) ~> $sum)").unwrap();
    assert_eq!(query.free_variables().into_iter().collect::<Vec<_>>(), ["offset"]);
}
