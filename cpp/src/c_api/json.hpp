// A reader of JSON (RFC 8259) for the documents of codebooks: untrusted text gives a value or std::invalid_argument.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace orbitsplit::c_api {

struct JsonMember;

// A value of one kind; the fields of the others are empty.
struct Json {
    enum class Kind { null, boolean, number, string, array, object };

    Kind kind = Kind::null;
    bool is_true = false;
    double number = 0;
    std::string text;                 // of a string, in UTF-8
    std::vector<Json> items;          // of an array
    std::vector<JsonMember> members;  // of an object, sorted by key, each key once

    // Null where an object has no such member, or this is no object.
    const Json* find(std::string_view key) const;
};

struct JsonMember {
    std::string key;
    Json value;
};

// Throws std::invalid_argument that says what is wrong at which byte.
Json parse_json(std::string_view text);

// The value of a member that must exist and be of this kind. Throws std::invalid_argument that names `what`, the object.
const Json& member(const Json& object, std::string_view key, const std::string& what, Json::Kind kind);

}  // namespace orbitsplit::c_api
