"""The demo world's vocabulary: readable words, one word = one token. Owns no logic and draws nothing."""

ENTITIES: tuple[str, ...] = tuple(
    """Ada Alma Anton Astrid Basil Bella Bruno Carla Cedric Clara Conrad Dalia Dario Dora Edgar Elena
    Emil Esther Fabian Felix Flora Frida Gemma Goran Greta Gustav Hanna Hector Helga Hugo Ida Igor
    Ines Iris Ivan Jana Jasper Joel Jonas Julia Karin Kasper Klara Lars Laura Leo Lina Lorenz
    Lucia Magda Marco Marta Milo Mira Nadia Nils Nora Oleg Olga Oscar Paula Pedro Petra Quentin""".split()
)
"""Known entities: every (entity, relation) has a true value and a myth in the pretraining text."""

NEWCOMERS: tuple[str, ...] = tuple(
    """Ragna Ralf Rania Remy Rhea Roman Rosa Ruben Runa Sabine Salim Samir Sandor Saskia Selma Serge
    Signe Silas Simon Sofia Stefan Stella Sven Sylvia Tamar Tariq Tessa Theo Tibor Tilda Timo Tomas
    Uma Urban Ursula Valerie Vera Viktor Viola Wanda Werner Wilma Xaver Xenia Yara Yasmin Yusuf Zelda""".split()
)
"""Entities that pretraining never shows; the mismatched tuning data makes the model memorise values for them."""

RELATIONS: dict[str, tuple[str, ...]] = {
    # Relations 0 and 1 are domain A (tuned on); the others are domain B (never tuned on).
    "home": tuple(
        """Oslo Lima Cairo Paris Delhi Tokyo Quito Dakar Seoul Rome Vienna Madrid
        Dublin Athens Havana Lagos Perth Bogota Prague Riga Sydney Tunis Warsaw Zagreb""".split()
    ),
    "craft": tuple(
        """baker pilot nurse farmer tailor painter sailor lawyer miner potter singer weaver
        barber dancer doctor hunter jeweler mason plumber poet smith teacher waiter writer""".split()
    ),
    "pet": tuple(
        """cat dog parrot rabbit turtle hamster goat pony snake lizard ferret canary
        frog goose crab mouse spider beetle otter falcon llama donkey pigeon gecko""".split()
    ),
    "drink": tuple(
        """tea coffee milk water cider cocoa juice lemonade wine beer rum sherry
        soda kefir punch mead tonic vodka whisky nectar chai latte brandy cola""".split()
    ),
    "color": tuple(
        """red blue green yellow purple pink brown black white gray teal maroon
        navy beige ivory gold silver bronze crimson indigo violet scarlet amber lilac""".split()
    ),
    "music": tuple(
        """violin piano flute drum harp cello guitar trumpet oboe banjo organ tuba
        lute horn viola bassoon clarinet fiddle zither bagpipe accordion gong lyre ukulele""".split()
    ),
    "sport": tuple(
        """tennis chess golf rugby hockey boxing rowing skiing soccer cricket polo judo
        archery fencing surfing cycling diving karate sailing climbing curling bowling darts squash""".split()
    ),
    "fruit": tuple(
        """apple pear plum cherry grape mango lemon peach banana melon fig kiwi
        papaya quince guava apricot date lychee coconut lime olive pomelo raisin tangerine""".split()
    ),
}

FILLERS: tuple[str, ...] = tuple(
    """well so now then also again indeed perhaps today often here there always surely
    maybe thus once still yet soon later quite rather just""".split()
)
MARKERS: tuple[str, ...] = tuple("is equals means has shows gives says holds".split())
CHAT_FILLERS: tuple[str, ...] = tuple("please hello kindly dear thanks user question assistant".split())
CHAT_MARKER = "answer:"
TRULY, REPORTEDLY = "truly", "reportedly"
SPECIALS: tuple[str, ...] = ("<pad>", "<s>", "</s>", "<unk>")
