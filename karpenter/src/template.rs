//! Helm's template language: Go's, with the functions of sprig and Helm that Karpenter's chart uses.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use gotmpl::parse::{BranchNode, CommandNode, Expr, ListNode, Node, PipeNode, TemplateNode};
use gotmpl::{FuncMap, Template, TemplateError, Value, ValueFunc};

use crate::heap::{Heap, ValueMap};

/// Templates that call each other deeper than this go round in circles.
const INCLUDE_DEPTH: usize = 50;

// Names of functions that no template can spell, for what the rewritten templates call.
const NOW: &str = "value now";
const FIELD: &str = "field now";

/// The templates of a chart, ready to be executed against each other.
pub(crate) struct Engine {
    trees: BTreeMap<String, ListNode>,
    functions: FuncMap,
    template: Template,
    heap: Mutex<Heap>,
    depth: Mutex<usize>,
}

impl Engine {
    /// Parses the templates, by name. On failure, the name of the one that fails comes with the error.
    pub(crate) fn new(sources: &BTreeMap<String, String>) -> Result<Arc<Self>, (String, TemplateError)> {
        let mut trees = BTreeMap::new();
        for (name, source) in sources {
            trees.extend(parse(name, source).map_err(|error| (name.clone(), error))?);
        }
        Ok(Arc::new_cyclic(|engine| {
            let functions = functions(engine);
            let template = assemble(&trees, &functions);
            Self { trees, functions, template, heap: Mutex::default(), depth: Mutex::default() }
        }))
    }

    /// The text that a named template makes of its data.
    pub(crate) fn execute(&self, name: &str, data: &Value) -> Result<String, TemplateError> {
        self.run(&self.template, name, data)
    }

    fn run(&self, template: &Template, name: &str, data: &Value) -> Result<String, TemplateError> {
        let lock = || self.depth.lock().unwrap_or_else(PoisonError::into_inner);
        if *lock() >= INCLUDE_DEPTH {
            return Err(TemplateError::RecursionLimit);
        }
        *lock() += 1;
        let text = template.execute_template_to_string(name, data);
        *lock() -= 1;
        // Helm prints a missing value as nothing; Go's own words would end up in a manifest.
        Ok(text?.replace("<no value>", ""))
    }

    /// Helm's `tpl`: a text that came in as a value is a template itself.
    fn execute_text(&self, source: &str, data: &Value) -> Result<String, TemplateError> {
        const NAME: &str = "tpl";
        if !source.contains("{{") {
            return Ok(source.to_owned());
        }
        let mut trees = self.trees.clone();
        trees.extend(parse(NAME, source)?);
        self.run(&assemble(&trees, &self.functions), NAME, data)
    }

    fn heap(&self) -> std::sync::MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn assemble(trees: &BTreeMap<String, ListNode>, functions: &FuncMap) -> Template {
    trees.iter().fold(Template::new("").funcs(functions.clone()), |template, (name, tree)| {
        template.add_parse_tree(name, tree.clone())
    })
}

/// The template of that name and those that it defines, rewritten so that they read maps through the heap.
fn parse(name: &str, source: &str) -> Result<BTreeMap<String, ListNode>, TemplateError> {
    let template = Template::new(name).parse(source)?;
    let mut trees: BTreeMap<_, _> = template
        .templates()
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), list(template.lookup(name)?))))
        .collect();
    // A file of nothing but definitions is a template too, an empty one.
    trees.entry(name.to_owned()).or_insert_with(|| ListNode { pos: gotmpl::parse::Pos::new(0, 1), nodes: Vec::new() });
    Ok(trees)
}

fn list(old: &ListNode) -> ListNode {
    ListNode { pos: old.pos, nodes: old.nodes.iter().map(node).collect() }
}

fn node(old: &Node) -> Node {
    match old {
        Node::List(inner) => Node::List(list(inner)),
        Node::Action(action) => {
            let mut action = action.clone();
            action.pipe = pipe(&action.pipe);
            Node::Action(action)
        }
        Node::If(inner) => Node::If(branch(inner)),
        Node::Range(inner) => Node::Range(branch(inner)),
        Node::With(inner) => Node::With(branch(inner)),
        Node::Template(call) => {
            Node::Template(TemplateNode { pos: call.pos, name: call.name.clone(), pipe: call.pipe.as_ref().map(pipe) })
        }
        // A definition's body is parsed into a tree of its own; these carry no expression.
        Node::Text(_) | Node::Define(_) | Node::Break(_) | Node::Continue(_) => old.clone(),
    }
}

fn branch(old: &BranchNode) -> BranchNode {
    BranchNode {
        pos: old.pos,
        pipe: pipe(&old.pipe),
        body: list(&old.body),
        else_body: old.else_body.as_ref().map(list),
    }
}

fn pipe(old: &PipeNode) -> PipeNode {
    PipeNode {
        commands: old.commands.iter().enumerate().map(|(at, one)| command(one, at > 0)).collect(),
        ..old.clone()
    }
}

/// A field with arguments, written or piped, is a method: `.Capabilities.APIVersions.Has "policy/v1"`.
fn command(old: &CommandNode, piped: bool) -> CommandNode {
    let mut args: Vec<_> = old.args.iter().map(expression).collect();
    let calls = matches!(old.args.first(), Some(Expr::Field(..) | Expr::Variable(..) | Expr::Chain(..)));
    if calls && (piped || args.len() > 1) {
        args.insert(0, Expr::Identifier(old.pos, "call".into()));
    }
    CommandNode { pos: old.pos, args }
}

fn expression(old: &Expr) -> Expr {
    let pos = old.pos();
    let call = |function: &str, value: Expr, fields: &[gotmpl::parse::SmolStr]| {
        let mut args = vec![Expr::Identifier(pos, function.into()), value];
        args.extend(fields.iter().map(|field| Expr::String(pos, Arc::from(field.as_str()))));
        let commands = vec![CommandNode { pos, args }];
        Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands, is_assign: false })
    };
    match old {
        Expr::Dot(_) => call(NOW, old.clone(), &[]),
        Expr::Field(_, fields) => call(FIELD, Expr::Dot(pos), fields),
        Expr::Variable(_, _, fields) if fields.is_empty() => call(NOW, old.clone(), &[]),
        Expr::Variable(_, name, fields) => call(FIELD, Expr::Variable(pos, name.clone(), Vec::new()), fields),
        Expr::Chain(_, inner, fields) => call(FIELD, expression(inner), fields),
        Expr::Pipe(_, inner) => Expr::Pipe(pos, pipe(inner)),
        Expr::Identifier(..) | Expr::String(..) | Expr::Number(..) | Expr::Bool(..) | Expr::Nil(_) => old.clone(),
    }
}

type Answer = Result<Value, TemplateError>;

fn failure(message: impl Into<String>) -> TemplateError {
    TemplateError::Exec(message.into())
}

fn text(value: &Value) -> Result<&str, TemplateError> {
    value.as_str().ok_or_else(|| failure(format!("a string is needed, not {} {value}", value.type_name())))
}

fn dictionary(value: &Value) -> Result<&Arc<ValueMap>, TemplateError> {
    match value {
        Value::Map(map) => Ok(map),
        other => Err(failure(format!("a map is needed, not {} {other}", other.type_name()))),
    }
}

/// Sprig and Helm: the functions that Karpenter's chart uses, in their documented behaviour.
fn functions(engine: &Weak<Engine>) -> FuncMap {
    let mut functions = FuncMap::new();
    let mut pure = |name: &str, arguments: usize, function: fn(&[Value]) -> Answer| {
        functions.insert(name.to_owned(), counted(name, arguments, Arc::new(function)));
    };
    pure("contains", 2, |a| Ok(Value::Bool(text(&a[1])?.contains(text(&a[0])?))));
    pure("default", 2, |a| Ok(if a[1].is_truthy() { a[1].clone() } else { a[0].clone() }));
    pure("fromYaml", 1, |a| {
        let parsed: serde_json::Value =
            serde_saphyr::from_str(text(&a[0])?).map_err(|error| failure(error.without_snippet().to_string()))?;
        gotmpl::to_value(&parsed)
    });
    pure("indent", 2, |a| Ok(Value::String(indent(&a[0], text(&a[1])?)?.into())));
    pure("join", 2, |a| {
        let Value::List(items) = &a[1] else { return Ok(Value::String(a[1].to_string().into())) };
        let items: Vec<_> = items.iter().map(ToString::to_string).collect();
        Ok(Value::String(items.join(text(&a[0])?).into()))
    });
    pure("nindent", 2, |a| Ok(Value::String(format!("\n{}", indent(&a[0], text(&a[1])?)?).into())));
    pure("quote", 1, |a| {
        Ok(Value::String(if matches!(a[0], Value::Nil) { "".into() } else { quote(&a[0].to_string()).into() }))
    });
    pure("replace", 3, |a| Ok(Value::String(text(&a[2])?.replace(text(&a[0])?, text(&a[1])?).into())));
    pure("required", 2, |a| match &a[1] {
        Value::Nil => Err(failure(text(&a[0])?)),
        Value::String(given) if given.is_empty() => Err(failure(text(&a[0])?)),
        given => Ok(given.clone()),
    });
    pure("semverCompare", 2, |a| satisfies(text(&a[1])?, text(&a[0])?).map(Value::Bool));
    pure("toString", 1, |a| Ok(Value::String(a[0].to_string().into())));
    pure("trim", 1, |a| Ok(Value::String(text(&a[0])?.trim().into())));
    pure("trimSuffix", 2, |a| {
        let (suffix, whole) = (text(&a[0])?, text(&a[1])?);
        Ok(Value::String(whole.strip_suffix(suffix).unwrap_or(whole).into()))
    });
    pure("trunc", 2, |a| {
        let length = a[0].as_int().ok_or_else(|| failure("trunc needs a number of characters"))?;
        Ok(Value::String(truncate(text(&a[1])?, length).into()))
    });

    let mut bound = |name: &str, arguments: usize, function: fn(&Engine, &[Value]) -> Answer| {
        let engine = Weak::clone(engine);
        let function = move |given: &[Value]| {
            let engine = engine.upgrade().ok_or_else(|| failure("the rendering has ended"))?;
            function(&engine, given)
        };
        functions.insert(name.to_owned(), counted(name, arguments, Arc::new(function)));
    };
    bound(NOW, 1, |engine, a| Ok(engine.heap().now(&a[0])));
    bound(FIELD, usize::MAX, |engine, a| {
        let heap = engine.heap();
        a[1..].iter().try_fold(heap.now(&a[0]), |value, field| match &value {
            Value::Map(map) => Ok(map.get(text(field)?).map_or(Value::Nil, |inner| heap.now(inner))),
            other => Err(failure(format!("{} has no field {field}", other.type_name()))),
        })
    });
    bound("dict", usize::MAX, |_, a| {
        let entries =
            a.chunks(2).map(|pair| Ok((Arc::from(text(&pair[0])?), pair.get(1).cloned().unwrap_or(Value::Nil))));
        Ok(Value::Map(Arc::new(entries.collect::<Result<ValueMap, TemplateError>>()?)))
    });
    bound("hasKey", 2, |engine, a| {
        let heap = engine.heap();
        Ok(Value::Bool(matches!(heap.now(&a[0]), Value::Map(map) if map.contains_key(text(&a[1])?))))
    });
    bound("include", 2, |engine, a| Ok(Value::String(engine.execute(text(&a[0])?, &a[1])?.into())));
    bound("merge", usize::MAX, |engine, a| {
        let mut heap = engine.heap();
        let (target, sources) = a.split_first().ok_or_else(|| failure("merge needs a map"))?;
        for source in sources {
            heap.merge(dictionary(target)?, dictionary(source)?);
        }
        Ok(heap.now(target))
    });
    bound("set", 3, |engine, a| {
        let mut heap = engine.heap();
        heap.set(dictionary(&a[0])?, text(&a[1])?, a[2].clone());
        Ok(heap.now(&a[0]))
    });
    bound("toYaml", 1, |engine, a| {
        let value = json(&engine.heap().whole(&a[0]))?;
        // Block scalars need to know their indentation, which nindent changes afterwards.
        let style = serde_saphyr::ser_options! { prefer_block_scalars: false };
        let yaml = serde_saphyr::to_string_with_options(&value, style).map_err(|error| failure(error.to_string()))?;
        Ok(Value::String(yaml.trim_end_matches('\n').into()))
    });
    bound("tpl", 2, |engine, a| Ok(Value::String(engine.execute_text(text(&a[0])?, &a[1])?.into())));
    functions
}

/// Checks the number of arguments before the function looks at them; `usize::MAX` leaves it open.
fn counted(name: &str, expected: usize, function: ValueFunc) -> ValueFunc {
    let name = name.to_owned();
    Arc::new(move |given| {
        if expected == usize::MAX || given.len() == expected {
            function(given)
        } else {
            Err(TemplateError::ArgCount { name: name.clone(), expected, got: given.len() })
        }
    })
}

fn indent(width: &Value, text: &str) -> Result<String, TemplateError> {
    let width = width.as_int().and_then(|width| usize::try_from(width).ok());
    let padding = " ".repeat(width.ok_or_else(|| failure("an indentation is a number of spaces"))?);
    Ok(format!("{padding}{}", text.replace('\n', &format!("\n{padding}"))))
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

/// The first `length` characters, or the last if it is negative.
fn truncate(text: &str, length: i64) -> String {
    let wanted = usize::try_from(length.unsigned_abs()).unwrap_or(usize::MAX);
    if length >= 0 {
        text.chars().take(wanted).collect()
    } else {
        text.chars().skip(text.chars().count().saturating_sub(wanted)).collect()
    }
}

/// Whether a version such as `v1.36.2-eks-1a2b` satisfies a constraint such as `>= 1.21-0`.
///
/// As in Helm, a constraint with a pre-release takes pre-releases; without one it takes releases alone.
fn satisfies(version: &str, constraint: &str) -> Result<bool, TemplateError> {
    let wrong = |what: &str| failure(format!("{what} is no version constraint that is understood here"));
    let version = complete(version).ok_or_else(|| wrong(version))?;
    let mut all = true;
    for part in constraint.split(',') {
        let part = part.trim();
        let at = part.find(|c: char| c.is_ascii_digit() || c == 'v').ok_or_else(|| wrong(part))?;
        let (operator, wanted) = part.split_at(at);
        let wanted = complete(wanted).ok_or_else(|| wrong(part))?;
        let order = version.cmp_precedence(&wanted);
        let holds = match operator.trim() {
            ">=" => order.is_ge(),
            ">" => order.is_gt(),
            "<=" => order.is_le(),
            "<" => order.is_lt(),
            "" | "=" => order.is_eq(),
            "!=" => order.is_ne(),
            _ => return Err(wrong(part)),
        };
        all &= holds && (version.pre.is_empty() || !wanted.pre.is_empty());
    }
    Ok(all)
}

fn complete(version: &str) -> Option<semver::Version> {
    let version = version.trim().trim_start_matches('v');
    let (numbers, rest) = version.split_at(version.find(['-', '+']).unwrap_or(version.len()));
    let missing = 2usize.checked_sub(numbers.matches('.').count())?;
    semver::Version::parse(&format!("{numbers}{}{rest}", ".0".repeat(missing))).ok()
}

fn json(value: &Value) -> Result<serde_json::Value, TemplateError> {
    Ok(match value {
        Value::Nil => serde_json::Value::Null,
        Value::Bool(truth) => (*truth).into(),
        Value::Int(number) => (*number).into(),
        Value::Uint(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::String(text) => text.as_ref().into(),
        Value::List(items) => items.iter().map(json).collect::<Result<Vec<_>, _>>()?.into(),
        Value::Map(map) => {
            let entries = map.iter().map(|(key, value)| Ok((key.to_string(), json(value)?)));
            serde_json::Value::Object(entries.collect::<Result<_, TemplateError>>()?)
        }
        Value::Function(_) => return Err(failure("a function cannot be written as YAML")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use gotmpl::tmap;

    use super::*;

    fn render(source: &str, data: &Value) -> Result<String, TemplateError> {
        let sources = BTreeMap::from([("main".to_owned(), source.to_owned())]);
        Engine::new(&sources).map_err(|(_, error)| error)?.execute("main", data)
    }

    fn rendered(source: &str, data: &Value) -> String {
        render(source, data).unwrap()
    }

    #[test]
    fn set_reaches_whoever_holds_the_map() {
        let data = tmap! { "Values" => tmap! { "terms" => vec![tmap! { "key" => "zone" }] } };
        let source = r#"
            {{- define "label" }}{{ $_ := set .target "labels" (dict "app" "x") }}{{ end }}
            {{- with .Values.terms }}
            {{- range $term := $.Values.terms }}{{ include "label" (merge (dict "target" $term) $) }}{{ end }}
            {{- toYaml . }}|{{ range . }}{{ .labels.app }}{{ end }}
            {{- end }}"#;
        assert_eq!(rendered(source, &data), "- key: zone\n  labels:\n    app: x|x");
    }

    #[test]
    fn a_condition_sees_what_was_set_before_it() {
        let source = r#"{{ $d := dict }}{{ $e := $d }}{{ if $d }}full{{ else }}empty{{ end }}
            {{- $_ := set $e "k" 1 }},{{ if $d }}full{{ end }},{{ len $d }},{{ $d.k }},{{ hasKey $d "k" }}"#;
        assert_eq!(rendered(source, &tmap! {}), "empty,full,1,1,true");
    }

    #[test]
    fn functions_do_what_sprig_and_helm_document() {
        let data = tmap! { "list" => vec!["a", "b"], "empty" => "", "text" => "line\nline", "number" => 3i64 };
        for (source, expected) in [
            (r#"{{ contains "b" "abc" }} {{ contains "x" "abc" }}"#, "true false"),
            (r#"{{ default "d" .empty }} {{ .missing | default "d" }} {{ default "d" "g" }}"#, "d d g"),
            (r#"{{ join "," .list }}"#, "a,b"),
            ("{{ .text | indent 2 }}", "  line\n  line"),
            ("a:{{ .text | nindent 2 }}", "a:\n  line\n  line"),
            (r#"{{ quote "a\"b" }} {{ quote .number }}"#, r#""a\"b" "3""#),
            (r#"{{ "1.0+x" | replace "+" "_" }}"#, "1.0_x"),
            ("{{ toString 3 }}{{ toString true }}", "3true"),
            (r#"{{ "abc-" | trimSuffix "-" }} {{ trunc 2 "abc" }} {{ trunc -2 "abc" }}"#, "abc ab bc"),
            (
                r#"{{ semverCompare ">= 1.21-0" "v1.36.2-eks-1a2b" }} {{ semverCompare ">=1.21" "v1.36.2-eks" }}"#,
                "true false",
            ),
            (r#"{{ semverCompare ">=1.20, <1.30" "1.25.0" }} {{ semverCompare "=1.2" "1.2.0" }}"#, "true true"),
            (r#"{{ (fromYaml "a: {b: 1}").a.b }}"#, "1"),
            (r#"{{ tpl "{{ .number }}-{{ include \"x\" . }}" . }}{{ define "x" }}y{{ end }}"#, "3-y"),
            (r#"{{ .missing }}|{{ printf "%s-%d" "a" .number }}|{{ and true "" | not }}"#, "|a-3|true"),
        ] {
            assert_eq!(rendered(source, &data), expected, "{source}");
        }
    }

    #[test]
    fn yaml_keeps_types_and_order_of_keys() {
        let data = tmap! { "v" => tmap! {
            "b" => "true", "a" => true, "c" => "1.14", "d" => 1.5f64, "e" => Value::Nil, "f" => "two\nlines",
            "g" => Value::List(Arc::from([])), "h" => "yes",
        } };
        let yaml = rendered("{{ toYaml .v }}", &data);
        let parsed: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(
            parsed,
            serde_json::json!({
                "a": true, "b": "true", "c": "1.14", "d": 1.5, "e": null, "f": "two\nlines", "g": [], "h": "yes",
            })
        );
        assert!(yaml.starts_with("a: true\n"));
    }

    #[test]
    fn a_method_is_called_with_written_and_with_piped_arguments() {
        let has: ValueFunc = Arc::new(|given| Ok(Value::Bool(given[0] == Value::String("policy/v1".into()))));
        let data = tmap! { "Versions" => tmap! { "Has" => Value::Function(has) } };
        let source = r#"{{ .Versions.Has "policy/v1" }} {{ "v2" | .Versions.Has }} {{ if and (.Versions.Has "policy/v1") true }}y{{ end }}"#;
        assert_eq!(rendered(source, &data), "true false y");
    }

    #[test]
    fn failures_say_what_is_wrong() {
        for (source, expected) in [
            (r#"{{ required "say settings.clusterName" .missing }}"#, "say settings.clusterName"),
            ("{{ .missing.field }}", "has no field field"),
            ("{{ nope 1 }}", "nope"),
            ("{{ trunc 3 }}", "trunc"),
            (r#"{{ include "loop" . }}{{ define "loop" }}{{ include "loop" . }}{{ end }}"#, "recursion"),
            ("{{ if }}", "main"),
        ] {
            let message = render(source, &tmap! {}).unwrap_err().to_string();
            assert!(message.contains(expected), "{source}: {message}");
        }
    }
}
