#include "orbitsplit/problem.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

#include "planner/cost.hpp"
#include "support/text.hpp"

namespace orbitsplit {

namespace {

[[noreturn]] void reject(const std::string& message) { throw std::invalid_argument(message); }

std::string indexed(const std::string& key, std::size_t index) {
    return key + "[" + std::to_string(index) + "]";
}

// Sums and products of values within these limits stay finite: bytes over bandwidth are at most 1e200 s, times counts.
// Memory of nodes and bandwidths, which are not added up, may be any finite number. A budget may exceed the losses of
// all cuts together.
constexpr double most_magnitude = 1e100;
constexpr double most_budget = 1e110;
constexpr double least_bandwidth = 1e-100;
constexpr double any_finite = std::numeric_limits<double>::max();

bool is_number(double value, double least) { return value >= least && value <= most_magnitude; }

void check_number(const std::string& key, double value, double least, double most = most_magnitude) {
    if (!std::isfinite(value)) reject(key + " is " + text::number(value) + ", must be finite");
    if (value < least)
        reject(key + " is " + text::number(value) + ", must be at least " + text::number(least));
    if (value > most) reject(key + " is " + text::number(value) + ", must be at most " + text::number(most));
}

bool is_bandwidth(double value) { return value == 0 || (value >= least_bandwidth && value <= any_finite); }

void check_bandwidth(const std::string& key, double value) {
    check_number(key, value, 0, any_finite);
    if (!is_bandwidth(value))
        reject(key + " is " + text::number(value) + ", must be 0 or at least " +
               text::number(least_bandwidth));
}

void check_size(const std::string& key, std::size_t size, std::size_t expected) {
    if (size != expected) {
        reject(key + " has " + std::to_string(size) + " values, needs " + std::to_string(expected));
    }
}

void check_vector(const std::string& key, const std::vector<double>& values, std::size_t size) {
    check_size(key, values.size(), size);
    // Keys are only made for invalid values: a large network has millions of links.
    for (std::size_t i = 0; i < size; ++i) {
        if (!is_number(values[i], 0)) check_number(indexed(key, i), values[i], 0);
    }
}

bool is_absent(double loss) { return std::isinf(loss) && loss > 0; }

void check_loss(const std::string& key, const std::vector<double>& values, std::size_t rows,
                std::size_t columns) {
    check_size(key, values.size(), rows * columns);
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (!is_absent(values[i]) && !is_number(values[i], 0))
            check_number(indexed(indexed(key, i / columns), i % columns), values[i], 0);
    }
}

void check_matrix(const std::string& key, const std::vector<double>& values, std::size_t rows,
                  std::size_t columns) {
    check_size(key, values.size(), rows * columns);
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < columns; ++j) {
            const double value = values[i * columns + j];
            if (!is_number(value, 0)) check_number(indexed(indexed(key, i), j), value, 0);
        }
    }
}

// Rows of layers: one for each node or, of memory, a single one; a block of them for each weight level, if there are
// any.
void check_layers(const Problem& problem, const std::string& key, const std::vector<double>& values,
                  std::size_t rows, bool has_rows) {
    const std::size_t layers = problem.layers.size();
    check_size(key, values.size(), weight_level_count(problem) * rows * layers);
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (is_number(values[i], 0)) continue;
        std::string place = key;
        if (!problem.weight_levels.empty()) place = indexed(place, i / (rows * layers));
        if (has_rows) place = indexed(place, i / layers % rows);
        check_number(indexed(place, i % layers), values[i], 0);
    }
}

// A number for each node; a block of them for each weight level, if there are any. May be empty.
void check_stage_overheads(const Problem& problem, const std::string& key,
                           const std::vector<double>& values) {
    const std::size_t nodes = problem.nodes.size();
    if (values.empty()) return;
    if (problem.weight_levels.empty()) {
        check_vector(key, values, nodes);
    } else {
        check_matrix(key, values, weight_level_count(problem), nodes);
    }
}

void check_count(const std::string& key, long long value, long long least) {
    constexpr long long most = std::numeric_limits<int>::max();
    if (value < least || value > most) {
        reject(key + " is " + std::to_string(value) + ", must be " + std::to_string(least) + " to " +
               std::to_string(most));
    }
}

void check_nodes(const std::vector<ProblemNode>& nodes) {
    if (nodes.empty()) reject("nodes is empty, needs at least one node");
    std::set<std::string> names;
    for (std::size_t n = 0; n < nodes.size(); ++n) {
        if (!names.insert(nodes[n].name).second) {
            reject(indexed("nodes", n) + ".name is \"" + nodes[n].name + "\", which another node has");
        }
        check_number(indexed("nodes", n) + ".memory_bytes", nodes[n].memory_bytes, 0, any_finite);
        check_number(indexed("nodes", n) + ".headroom_bytes", nodes[n].headroom_bytes, 0, any_finite);
        if (nodes[n].headroom_bytes > nodes[n].memory_bytes) {
            reject(indexed("nodes", n) + ".headroom_bytes is " + text::number(nodes[n].headroom_bytes) +
                   ", must be at most its memory_bytes " + text::number(nodes[n].memory_bytes));
        }
    }
}

void check_levels(const std::vector<Level>& levels) {
    for (std::size_t k = 0; k < levels.size(); ++k) {
        check_number(indexed("levels", k) + ".ratio", levels[k].ratio, 1);
        check_number(indexed("levels", k) + ".encode_s_per_byte", levels[k].encode_s_per_byte, 0);
        check_number(indexed("levels", k) + ".decode_s_per_byte", levels[k].decode_s_per_byte, 0);
    }
}

void check_decode(const Problem& problem) {
    const std::size_t layers = problem.layers.size();
    const std::string tokens = " is missing, new_tokens is " + std::to_string(problem.new_tokens);
    if (!problem.layer_decode_time_s.empty()) {
        check_layers(problem, "layer_decode_time_s", problem.layer_decode_time_s, problem.nodes.size(), true);
    } else if (generates(problem)) {
        reject("layer_decode_time_s" + tokens);
    }
    check_stage_overheads(problem, "stage_decode_overhead_s", problem.stage_decode_overhead_s);
    if (!problem.cut_decode_bytes.empty()) {
        check_vector("cut_decode_bytes", problem.cut_decode_bytes, layers - 1);
    } else if (generates(problem) && layers > 1) {
        reject("cut_decode_bytes" + tokens);
    }
}

void check_external(const std::string& key, const std::optional<ExternalLink>& link, std::size_t nodes) {
    if (!link) return;
    check_number(key + ".bytes", link->bytes, 0);
    check_size(key + ".bandwidth_bytes_per_s", link->bandwidth_bytes_per_s.size(), nodes);
    for (std::size_t n = 0; n < nodes; ++n)
        check_bandwidth(indexed(key + ".bandwidth_bytes_per_s", n), link->bandwidth_bytes_per_s[n]);
    check_vector(key + ".latency_s", link->latency_s, nodes);
}

void check_index(const std::string& key, const char* noun, int value, std::size_t count) {
    if (value < 0 || static_cast<std::size_t>(value) >= count) {
        reject(key + " is " + std::to_string(value) + ", the " + noun + " are 0 to " +
               std::to_string(count - 1));
    }
}

void check_pins(const Pins& pins, std::size_t layers, std::size_t nodes) {
    for (std::size_t i = 0; i < pins.forbidden.size(); ++i) {
        check_index(indexed("pins.forbidden", i), "nodes", pins.forbidden[i], nodes);
    }
    const auto is_forbidden = [&](int node) {
        return std::find(pins.forbidden.begin(), pins.forbidden.end(), node) != pins.forbidden.end();
    };
    for (std::size_t i = 0; i < pins.required.size(); ++i) {
        check_index(indexed("pins.required", i), "nodes", pins.required[i], nodes);
        if (is_forbidden(pins.required[i])) {
            reject(indexed("pins.required", i) + " is node " + std::to_string(pins.required[i]) +
                   ", which pins.forbidden names too");
        }
    }
    std::set<int> pinned;
    for (const Pin& pin : pins.layers) {
        check_index("pins.layers: the layer", "layers", pin.layer, layers);
        const std::string key = "pins.layers[" + std::to_string(pin.layer) + "]";
        if (!pinned.insert(pin.layer).second) reject(key + " is given twice");
        check_index(key, "nodes", pin.node, nodes);
        if (is_forbidden(pin.node)) {
            reject(key + " is node " + std::to_string(pin.node) + ", which pins.forbidden names too");
        }
    }
}

}  // namespace

void validate(const Problem& problem) {
    const std::size_t layers = problem.layers.size();
    if (layers == 0) reject("layers is empty, needs at least one layer");
    check_nodes(problem.nodes);
    const std::size_t nodes = problem.nodes.size();
    check_layers(problem, "layer_memory_bytes", problem.layer_memory_bytes, 1, false);
    check_layers(problem, "layer_time_s", problem.layer_time_s, nodes, true);
    if (!problem.layer_earlier_time_s.empty())
        check_layers(problem, "layer_earlier_time_s", problem.layer_earlier_time_s, nodes, true);
    check_stage_overheads(problem, "stage_overhead_s", problem.stage_overhead_s);
    check_vector("cut_bytes", problem.cut_bytes, layers - 1);
    check_size("bandwidth_bytes_per_s", problem.bandwidth_bytes_per_s.size(), nodes * nodes);
    for (std::size_t i = 0; i < nodes * nodes; ++i) {
        const double value = problem.bandwidth_bytes_per_s[i];
        if (!is_bandwidth(value)) {
            check_bandwidth(indexed(indexed("bandwidth_bytes_per_s", i / nodes), i % nodes), value);
        }
    }
    check_matrix("latency_s", problem.latency_s, nodes, nodes);
    check_levels(problem.levels);
    check_loss("loss", problem.loss, layers - 1, problem.levels.size());
    check_loss("weight_loss", problem.weight_loss, problem.weight_levels.size(), layers);
    if (problem.loss_budget) check_number("loss_budget", *problem.loss_budget, 0, most_budget);
    check_count("micro_batches", problem.micro_batches, 1);
    check_count("new_tokens", problem.new_tokens, 0);
    if (problem.groups) check_count("groups", *problem.groups, 1);
    check_number("tokens_per_step", problem.tokens_per_step, 1);
    check_decode(problem);
    check_external("ingress", problem.ingress, nodes);
    check_external("egress", problem.egress, nodes);
    check_pins(problem.pins, layers, nodes);
}

PreparedProblem::PreparedProblem(Problem problem)
    : problem_(std::make_shared<const Problem>(std::move(problem))) {
    validate(*problem_);
}

}  // namespace orbitsplit
