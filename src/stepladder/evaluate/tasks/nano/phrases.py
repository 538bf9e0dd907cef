"""How each kind of question is worded: phrasings that nano's training shows, and held-out ones that it never shows."""

from __future__ import annotations

from typing import NamedTuple


class Phrasing(NamedTuple):
    """Templates of one kind of question; `heldout` words the splits "train" and "judged" and nothing else."""

    shown: tuple[str, ...]
    heldout: tuple[str, ...]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _phrasing(shown: str, heldout: str) -> Phrasing:
    return Phrasing(_lines(shown), _lines(heldout))


PHRASINGS: dict[str, Phrasing] = {
    "define": _phrasing(
        """What does {word} mean?
        Define {word}.
        Define the word {word}.
        Give the meaning of {word}.
        What is the definition of {word}?
        Explain the word {word}.
        Tell me what {word} means.
        What is meant by {word}?
        Meaning of {word}?
        Please define "{word}".
        What does the word "{word}" mean?
        Give me the definition of the word {word}.""",
        """What is the meaning of {word}?
        Give the definition of {word}.
        Define the word "{word}", please.
        Tell me the meaning of the word {word}.""",
    ),
    "define_noun": _phrasing(
        """What is {a_word}?
        Define {a_word}.
        Describe {a_word}.
        Tell me what {a_word} is.
        Explain what {a_word} is.
        {word}: what is it?
        What do you call {a_word} by definition?
        In short, what is {a_word}?
        What sort of thing is {a_word}?""",
        """What exactly is {a_word}?
        Can you tell me what {a_word} is?
        Please explain what {a_word} is.""",
    ),
    "word_for": _phrasing(
        """Which word means: {gloss}?
        What word means {gloss}?
        Give the word that means {gloss}.
        What is the word for: {gloss}?
        Name the word defined as: {gloss}.
        Which word is defined as {gloss}?
        What do we call this: {gloss}?
        Find the word: {gloss}.
        Tell me the word that means: {gloss}.
        One word for: {gloss}?
        Which word has the meaning "{gloss}"?""",
        """What is the word that means {gloss}?
        Name the word that means: {gloss}.
        Which word has this definition: {gloss}?
        Give the word for: {gloss}.""",
    ),
    "capital_of": _phrasing(
        """What is the capital of {country}?
        Name the capital of {country}.
        Which city is the capital of {country}?
        Give the capital city of {country}.
        Tell me the capital of {country}.
        {country}: what is its capital?
        The capital of {country} is which city?
        What city is {country}'s capital?
        Capital of {country}?""",
        """What is the capital city of {country}?
        Give the capital of {country}.
        Tell me which city is the capital of {country}.
        Which is the capital of {country}?""",
    ),
    "country_of": _phrasing(
        """{capital} is the capital of which country?
        Which country has the capital {capital}?
        Of which country is {capital} the capital?
        Name the country whose capital is {capital}.
        What country has {capital} as its capital?
        Which country's capital is {capital}?
        Tell me the country whose capital is {capital}.
        Give the country that has the capital {capital}.
        {capital}: the capital of which country?""",
        """What country's capital is {capital}?
        Which country has {capital} as its capital?
        Give the country whose capital is {capital}.
        {capital} is the capital of what country?""",
    ),
    "symbol_of": _phrasing(
        """What is the symbol of {element}?
        What is the chemical symbol for {element}?
        Give the symbol for {element}.
        Which symbol stands for {element}?
        Name the symbol of the element {element}.
        Symbol for {element}?
        How is {element} written as a symbol?
        Tell me the symbol of {element}.
        Write the chemical symbol of {element}.""",
        """What is the chemical symbol of {element}?
        Give the chemical symbol for {element}.
        Which is the symbol for the element {element}?
        Tell me the symbol for {element}.""",
    ),
    "element_of": _phrasing(
        """Which element has the symbol {symbol}?
        What element is {symbol}?
        Name the element with the symbol {symbol}.
        {symbol} is the symbol of which element?
        Which element is written {symbol}?
        {symbol} stands for which element?
        Tell me which element has the symbol {symbol}.
        What is the element with the symbol {symbol}?
        Give the element for the symbol {symbol}.""",
        """What element has the symbol {symbol}?
        Give the element with the symbol {symbol}.
        {symbol} is the symbol for what element?
        Name the element that has the symbol {symbol}.""",
    ),
    "number_of": _phrasing(
        """What is the atomic number of {element}?
        Give the atomic number of {element}.
        Which atomic number has {element}?
        Atomic number of {element}?
        Tell me the atomic number of {element}.
        {element}: what is its atomic number?
        Which number does {element} have in the periodic table?
        Name the atomic number of the element {element}.
        State the atomic number of {element}.""",
        """What is the atomic number of the element {element}?
        Give me the atomic number of {element}.
        What atomic number does {element} have?
        Tell me the atomic number of the element {element}.""",
    ),
    "choose_word": _phrasing(
        """Which word means {gloss}? {options}
        Which of these words means: {gloss}? {options}
        Choose the word that means {gloss}. {options}
        Pick the word for: {gloss}. {options}
        {options} Which one means {gloss}?
        What means "{gloss}"? {options}
        Select the word defined as {gloss}. {options}
        Which option means: {gloss}? {options}
        One of these words means {gloss}. Which one? {options}""",
        """Which of these means {gloss}? {options}
        Pick the word that means: {gloss}. {options}
        Choose the word for: {gloss}. {options}
        Which one of these words means {gloss}? {options}""",
    ),
    "choose_capital": _phrasing(
        """Which city is the capital of {country}? {options}
        What is the capital of {country}? {options}
        Choose the capital of {country}. {options}
        Pick the capital city of {country}: {options}
        {options} Which one is the capital of {country}?
        Select the capital of {country}. {options}
        Which option is the capital of {country}? {options}
        One of these is the capital of {country}. Which one? {options}""",
        """Which of these is the capital of {country}? {options}
        Pick the capital of {country}. {options}
        Which one is the capital city of {country}? {options}""",
    ),
    "choose_symbol": _phrasing(
        """Which is the symbol of {element}? {options}
        What is the chemical symbol for {element}? {options}
        Choose the symbol of {element}. {options}
        Pick the chemical symbol of {element}: {options}
        {options} Which one is the symbol of {element}?
        Select the symbol for {element}. {options}
        Which option is the symbol of {element}? {options}
        One of these is the symbol of {element}. Which one? {options}""",
        """Which of these is the symbol of {element}? {options}
        Pick the symbol of {element}. {options}
        Which one is the chemical symbol of {element}? {options}""",
    ),
    "plus": _phrasing(
        """What is {a} plus {b}?
        Add {a} and {b}.
        What do you get if you add {b} to {a}?
        How much is {a} plus {b}?
        Find the sum of {a} and {b}.
        What is the sum of {a} and {b}?
        {a} plus {b} is how much?
        Give the sum of {a} and {b}.
        Work out {a} plus {b}.
        If you add {a} and {b}, what is the sum?""",
        """What does {a} plus {b} make?
        Tell me the sum of {a} and {b}.
        What is {a} and {b} added?
        Find {a} plus {b}.""",
    ),
    "minus": _phrasing(
        """What is {a} minus {b}?
        Subtract {b} from {a}.
        Take {b} away from {a}.
        How much is {a} minus {b}?
        What do you get if you take {b} from {a}?
        What is {a} less {b}?
        {a} minus {b} is how much?
        Work out {a} minus {b}.
        What is left if you take {b} from {a}?""",
        """What does {a} minus {b} make?
        How much is left if you take {b} from {a}?
        Find {a} minus {b}.
        Give {a} minus {b}.""",
    ),
    "story_start": _phrasing(
        """{name} has {n} {item}.
        {name} starts with {n} {item}.
        {name} owns {n} {item}.
        {name} brings {n} {item}.
        {name} had {n} {item} at first.
        There are {n} {item} on {name}'s table.
        In the morning {name} has {n} {item}.
        {name} begins with {n} {item}.""",
        """{name} has got {n} {item}.
        At first {name} has {n} {item}.
        {name} starts the day with {n} {item}.""",
    ),
    "story_gain": _phrasing(
        """{name} buys {n} more.
        {name} gets {n} more {item}.
        Then {name} finds {n} more.
        A friend gives {name} {n} more {item}.
        {name} picks up {n} more {item}.
        {n} more are added.
        {name} receives {n} more.
        Then {n} more {item} arrive.""",
        """{name} gets {n} more.
        Then {name} buys {n} more {item}.
        {name} receives {n} more {item}.""",
    ),
    "story_lose": _phrasing(
        """{name} gives away {n}.
        {name} loses {n} {item}.
        Then {name} sells {n}.
        {name} uses {n} of them.
        {n} are taken away.
        {name} drops {n} {item}.
        {name} throws away {n}.
        Then {n} {item} are lost.""",
        """{name} loses {n}.
        Then {name} gives away {n} {item}.
        {name} sells {n} of them.""",
    ),
    "story_times": _phrasing(
        """Then the number becomes {n} times as big.
        The amount grows to {n} times as many.
        {name} now gets {n} times as many.
        Then it is multiplied by {n}.
        The number is multiplied by {n}.
        Then {name} has {n} times as many.
        Then there are {n} times as many {item}.
        The count goes up {n} times.""",
        """Then the amount is multiplied by {n}.
        Then the number grows to {n} times as many.
        Now {name} has {n} times as many {item}.""",
    ),
    "story_share": _phrasing(
        """Then they are shared equally by {n} people and {name} keeps one share.
        They are split into {n} equal parts and {name} keeps one part.
        {name} divides them by {n} and keeps one part.
        Then the number is divided by {n}.
        The amount is divided by {n}.
        {name} shares them among {n} friends equally and looks at one share.
        Then only one part out of {n} equal parts is left.
        They are put into {n} equal boxes and {name} takes one box.""",
        """Then the amount is divided by {n}.
        Then they are split into {n} equal parts and {name} keeps one.
        They are shared equally by {n} people and {name} takes one share.""",
    ),
    "story_ask": _phrasing(
        """How many {item} does {name} have?
        How many {item} are there now?
        How many are left?
        How many {item} does {name} have now?
        What is the number of {item} now?
        How many {item} in the end?
        Count the {item}.
        How many does {name} have in total?""",
        """How many {item} does {name} have in the end?
        How many does {name} have now?
        What is the number of {item} in the end?""",
    ),
    "reverse": _phrasing(
        """Reverse: {items}
        Reverse this list: {items}
        Write {items} backwards.
        Put {items} in reverse order.
        Reverse the order of {items}
        Turn this list around: {items}
        Give the list backwards: {items}
        Say {items} in reverse.
        Read this backwards: {items}""",
        """Reverse the list: {items}
        Give this list in reverse order: {items}
        Write this list backwards: {items}""",
    ),
    "sort_numbers": _phrasing(
        """Sort these numbers: {items}
        Sort {items} from smallest to largest.
        Put these numbers in order: {items}
        Order the numbers {items} from small to large.
        Arrange {items} in ascending order.
        Write these numbers from smallest to largest: {items}
        Sort in ascending order: {items}
        Give {items} in increasing order.
        Sort: {items}""",
        """Sort the numbers {items}
        Put {items} in order from smallest to largest.
        Arrange these numbers in ascending order: {items}""",
    ),
    "sort_words": _phrasing(
        """Sort these words: {items}
        Sort the words alphabetically: {items}
        Put these words in alphabetical order: {items}
        Arrange alphabetically: {items}
        Order the words {items} from a to z.
        Sort {items} by the alphabet.
        Write these words in alphabetical order: {items}
        Give the words in order from a to z: {items}""",
        """Sort these words alphabetically: {items}
        Arrange the words in alphabetical order: {items}
        Put the words {items} in alphabetical order.""",
    ),
    "count_items": _phrasing(
        """How many words are in this list: {items}?
        Count the words: {items}
        How many items are there: {items}?
        Count the items in {items}
        What is the number of words in {items}?
        How long is this list: {items}?
        Number of items in the list {items}?
        Tell me how many words this list has: {items}""",
        """How many items are in this list: {items}?
        Count the words in this list: {items}
        What is the number of items in the list {items}?""",
    ),
    "nth": _phrasing(
        """What is the {nth} word in {items}?
        Give the {nth} item of {items}
        Which word is {nth} in this list: {items}?
        Name the {nth} word: {items}
        Take the {nth} item of this list: {items}
        In the list {items}, what comes {nth}?
        The {nth} word of {items} is?
        Find the {nth} item: {items}
        Tell me the {nth} word in the list {items}""",
        """What is the {nth} item in this list: {items}?
        Give the {nth} word of {items}
        Which item is {nth} in the list {items}?""",
    ),
    "count_of": _phrasing(
        """How often does {x} occur in {items}?
        Count the letter {x} in: {items}
        How many times does {x} appear in {items}?
        How many {x} are in {items}?
        Count {x} in {items}
        In {items}, how often is {x} found?
        What is the number of {x} in {items}?
        How often is {x} in this list: {items}?""",
        """How many times does {x} occur in {items}?
        Count how often {x} appears in: {items}
        In {items}, how many times is {x} found?""",
    ),
    "nth_smallest": _phrasing(
        """What is the {nth} smallest number of {items}?
        Find the {nth} smallest number in {items}
        Which number is the {nth} smallest: {items}?
        Give the {nth} smallest of these numbers: {items}
        Sort {items} and give the {nth} number.
        Which is the {nth} smallest in {items}?
        Name the {nth} smallest number: {items}
        Of the numbers {items}, which one is the {nth} smallest?""",
        """What is the {nth} smallest of these numbers: {items}?
        Give the {nth} smallest number of {items}
        Find the {nth} smallest of the numbers {items}""",
    ),
    "spell_back": _phrasing(
        """Spell {word} backwards.
        Spell the word {word} in reverse.
        Write the letters of {word} backwards.
        Give the letters of {word} in reverse order.
        How do you spell {word} backwards?
        Reverse the letters of {word}.
        Reverse the letters of the word "{word}".
        Spell "{word}" from the end to the start.""",
        """Spell the word {word} backwards.
        Give the letters of the word {word} backwards.
        Write the letters of "{word}" in reverse order.""",
    ),
    "unique": _phrasing(
        """Remove the repeated words: {items}
        Drop the duplicates from {items}
        Remove duplicates: {items}
        Keep each word only once: {items}
        Give {items} without repeated words.
        Write this list without duplicates: {items}
        Delete every repeated word in {items}
        List each word of {items} once, in order.""",
        """Remove the duplicates from this list: {items}
        Give this list without duplicates: {items}
        Keep each word of {items} only once.""",
    ),
    "date_after": _phrasing(
        """What date is {n} days after {date}?
        Which date comes {n} days after {date}?
        Add {n} days to {date}.
        It is {date}. What is the date in {n} days?
        What is the date {n} days after {date}?
        {n} days after {date} is what date?
        Give the date {n} days after {date}.
        {date} plus {n} days is which date?
        Today is {date}. Which date is it {n} days later?""",
        """Which date is {n} days after {date}?
        What date comes {n} days after {date}?
        Today is {date}. What is the date in {n} days?""",
    ),
    "date_before": _phrasing(
        """What date is {n} days before {date}?
        Which date comes {n} days before {date}?
        Subtract {n} days from {date}.
        It is {date}. What was the date {n} days ago?
        What is the date {n} days before {date}?
        {n} days before {date} is what date?
        Give the date {n} days before {date}.
        {date} minus {n} days is which date?
        Today is {date}. Which date was it {n} days earlier?""",
        """Which date is {n} days before {date}?
        What date comes {n} days before {date}?
        Today is {date}. What was the date {n} days ago?""",
    ),
    "days_between": _phrasing(
        """How many days are there from {date} to {other}?
        How many days are between {date} and {other}?
        Count the days from {date} to {other}.
        What is the number of days from {date} to {other}?
        From {date} to {other}: how many days?
        How many days lie between {date} and {other}?
        How many days is it from {date} until {other}?
        Give the number of days between {date} and {other}.""",
        """How many days is it from {date} to {other}?
        Count the days between {date} and {other}.
        What is the number of days between {date} and {other}?""",
    ),
    "weekday": _phrasing(
        """If {date} is a {day}, which weekday is {other}?
        {date} is a {day}. What day of the week is {other}?
        {date} falls on a {day}. Which weekday is {other}?
        Which day of the week is {other} if {date} is a {day}?
        Suppose {date} is a {day}. Name the weekday of {other}.
        What weekday is {other} when {date} is a {day}?
        Given that {date} is a {day}, what day is {other}?
        {date}: {day}. {other}: which weekday?""",
        """If {date} is a {day}, what day of the week is {other}?
        {date} is a {day}. Which weekday is {other}?
        What weekday is {other} if {date} falls on a {day}?""",
    ),
    "convert": _phrasing(
        """How many {to} are {n} {frm}?
        Convert {n} {frm} to {to}.
        How many {to} are there in {n} {frm}?
        What is {n} {frm} in {to}?
        Give {n} {frm} in {to}.
        {n} {frm} is how many {to}?
        Express {n} {frm} in {to}.
        Change {n} {frm} into {to}.
        Write {n} {frm} as {to}.""",
        """How many {to} are in {n} {frm}?
        Convert {n} {frm} into {to}.
        What are {n} {frm} in {to}?""",
    ),
    "distance": _phrasing(
        """A car drives at {v} km per hour for {hours} hours and {minutes} minutes. How many km does it go?
        How many km does a train go in {hours} hours and {minutes} minutes at {v} km per hour?
        At {v} km per hour, how far do you get in {hours} hours and {minutes} minutes, in km?
        Speed {v} km per hour, time {hours} hours and {minutes} minutes. What is the distance in km?
        A bus goes {v} km per hour. How many km are that in {hours} hours and {minutes} minutes?
        You ride {hours} hours and {minutes} minutes at {v} km per hour. How far is that in km?
        A boat moves at {v} km per hour for {hours} hours and {minutes} minutes. How far does it move in km?
        What distance in km is {hours} hours and {minutes} minutes at {v} km per hour?""",
        """A train goes at {v} km per hour for {hours} hours and {minutes} minutes. How many km does it go?
        How far does a car drive in {hours} hours and {minutes} minutes at {v} km per hour, in km?
        You drive {hours} hours and {minutes} minutes at {v} km per hour. What is the distance in km?""",
    ),
    "greater": _phrasing(
        """Is {a} greater than {b}?
        Is {a} bigger than {b}?
        Is {a} more than {b}?
        Is it true that {a} is greater than {b}?
        Yes or no: {a} is greater than {b}.
        Is the number {a} larger than {b}?
        Tell me whether {a} is bigger than {b}.
        Does {a} exceed {b}?""",
        """Is the number {a} greater than {b}?
        Yes or no: {a} is bigger than {b}.
        Is it true that {a} is more than {b}?""",
    ),
    "even": _phrasing(
        """Is {a} even?
        Is {a} an even number?
        Is the number {a} even?
        Yes or no: {a} is even.
        Is it true that {a} is even?
        Tell me whether {a} is even.
        Can {a} be divided by 2 without a rest?
        Does 2 divide {a}?""",
        """Yes or no: {a} is an even number.
        Is it true that {a} is an even number?
        Tell me whether the number {a} is even.""",
    ),
    "chain": _phrasing(
        """{facts} Who is {ask}?
        {facts} Name the one who is {ask}.
        {facts} Which of them is {ask}?
        {facts} Who of them is {ask}?
        {facts} Tell me who is {ask}.
        {facts} So who is {ask}?
        Who is {ask}? {facts}
        {facts} Which person is {ask}?""",
        """{facts} Which one is {ask}?
        {facts} Tell me which person is {ask}.
        {facts} Then who is {ask}?""",
    ),
    "boolean": _phrasing(
        """What is {e}?
        Is this true or false: {e}?
        Evaluate {e}
        True or false: {e}
        Work out {e}
        What is the value of {e}?
        Give the truth value of {e}
        Find the value of {e}
        Does {e} give true or false?""",
        """Is {e} true or false?
        What is the truth value of {e}?
        Evaluate this: {e}""",
    ),
    "evaluate": _phrasing(
        """What is {e}?
        Calculate {e}
        Compute {e}
        {e} = ?
        Work out {e}
        Evaluate {e}
        How much is {e}?
        What is the value of {e}?
        Find the value of {e}
        {e}""",
        """What does {e} make?
        Give the value of {e}
        Calculate the value of {e}
        How much does {e} make?""",
    ),
}
