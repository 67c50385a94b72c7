"""How a speaker declines in languages other than English: patterns for `plain` text, by language.

A pattern names the speaker or is impersonal ("that is not possible"). "You cannot" and "he will not" decline
nothing.
Chinese is given in simplified and traditional characters.
"""

REFUSALS = {
    "zh": (
        r"(?:我|我们|我們|本人)(?:实在|實在|真的|也|都|是|恐怕|可能|目前|必须|必須|只能|确实|確實)?(?:很抱歉)?(?:无法|無法|不能|不会|不會|没办法|沒辦法|没法|沒法|"
        r"不可以|"
        r"不愿|不願|不想|不便|不应该|不應該|不打算|绝不|絕不|拒绝|拒絕|不支持|不鼓励|不鼓勵|不提供|不得不拒|不接受|不方便|没有办法|沒有辦法|不被允许|不被允許)",
        r"(?:无法|無法|不能|不会|不會|不便|没办法|沒辦法|没法|不可以|拒绝|拒絕|不予|恕不|恕难|恕難|难以|難以)(?:为您|为你|為您|為你|给您|给你|給您|給你|向您|向你|对此|對此|"
        r"在这|就此)?(?:继续|繼續)?(?:提供|帮助|幫助|协助|協助|回答|满足|滿足|回应|回應|完成|讨论|討論|处理|處理|给出|給出|支持|从命|從命|奉告|帮|幫|参与|參與|告诉|"
        r"告訴|做到|做|生成)",
        r"(?:对不起|對不起|抱歉|不好意思|很遗憾|很遺憾|遗憾)[,，。.!！ ]",
        r"(?:请求|請求|要求|问题|問題|内容|內容|话题|話題|行为|行為)[^。.!?\n]{0,12}(?:违反|違反|违背|違背|违法|違法|不合法|不道德|有害|超出|不合适|不合適|不当|"
        r"不當|不恰当)",
        r"(?:违反|違反|违背|違背|超出)(?:了)?(?:我|法律|道德)",
        r"^\W*(?:不行|不可以|不|不能|不可能|拒绝|拒絕|免谈|免談|没门|不会的|绝对不行|當然不行|当然不行)\W*$",
        r"(?:换|換)(?:一)?(?:个|個)(?:话题|話題|问题|問題)|爱莫能助|愛莫能助|无可奉告|無可奉告|帮不了|幫不了|帮不上|幫不上|办不到|辦不到",
    ),
    "ja": (
        r"(?:でき|出来|お答えし|お手伝いし|お応えし|応じられ|対応し|提供し|教えられ|答えられ|お教えし|手伝え|協力し|話せ|お話しでき|お受けし|手助けでき|いたし|致し|"
        r"いたしかね|書け|支援し|サポートし|いただけ|なりかね|従え|認められ|許可されてい|お伝えでき)(?:ません|ない|かねます|兼ねます|ませ|かね)",
        r"(?:申し訳|もうしわけ)(?:ありません|ございません|ない)|すみません|すいません|ごめんなさい|ごめんね|恐れ入りますが|残念ながら|残念ですが|恐縮ですが",
        r"お断り|断ります|拒否|遠慮|差し控え|控えさせ|応じかね|お応えでき|できかね|いたしかね|お答えできない|無理です|ダメです|だめです|不可能です|お役に立て(?:ません|ない)|"
        r"(?:手伝い|教え|答え|協力し|いたし|致し|やり|し)ません",
        r"(?:ガイドライン|ポリシー|規約|倫理|法律|方針)[^.\n]{0,15}(?:違反|反し|反する|抵触|許され)",
        r"^\W*(?:いいえ|いや|だめ|ダメ|無理|駄目|嫌です|いやです)\W*$|他の話題|別の話題|別の質問",
    ),
    "ko": (
        r"(?:수|줄) ?(?:는|가|도)? ?없(?:습니다|어요|어|다|네요|겠|는|음|을|지)",
        r"(?:죄송|미안|송구|유감)(?:하지만|합니다|해요|하게도|스럽|하네요|해|한)",
        r"거절|거부|못합니다|못해요|못 ?해|못 ?도와|안 ?됩니다|안 ?돼요|안 ?돼|"
        r"않겠습니다|않을 ?(?:것|게|겁)|않습니다|않아요|"
        r"어렵습니다|어려워요|곤란|불가능|불가합니다|"
        r"싫습니다|싫어요|못 ?드",
        r"(?:정책|지침|윤리|법|규정|가이드라인)[^.\n]{0,12}(?:위반|어긋|위배|반합|반하)",
        r"^\W*(?:아니요|아니오|아뇨|안돼요?|싫어요?)\W*$|다른 (?:주제|질문|이야기)",
    ),
    "ru": (
        r"\b(?:я|мы)(?: \w+){0,3} (?:не|отказываюсь|отказываемся|вынужден|вынуждена|откажусь|против|"
        r"воздержусь)\b",
        r"\b(?:не (?:могу|можем|буду|будем|стану|хочу|намерен|намерена|готов|готова|в состоянии|имею права|"
        r"имею возможности|вправе|собираюсь|имею|получится|"
        r"сможем|смогу|поддерживаю|предоставляю|обсуждаю|помогаю|участвую|предназначен|предназначена))\b",
        r"\b(?:извините|простите|прошу прощения|прошу извинить|приношу (?:свои )?извинения|к сожалению|увы|"
        r"сожалею|мне жаль|мне очень жаль)\b",
        r"\b(?:отказываюсь|откажусь|отказано|вынужден(?:а)? отказать|воздержусь|отклонен|отклоняю|отклонён|"
        r"невозможно|недопустимо|неприемлемо|исключено|запрещено)\b",
        r"\b(?:противоречит|нарушает|выходит за рамки|против моих)\b|\bпротив\w* (?:правил|закон|принцип|"
        r"моих)",
        r"^\W*(?:нет|ни за что|никогда|ни в коем случае|нельзя)\W*(?:$|[.!,])|другую тему|о другом|"
        r"другой вопрос|другому вопросу",
    ),
    "ar": (
        r"(?:لا|لن|لم|ليس) ?(?:يمكنني|يمكننا|أستطيع|استطيع|نستطيع|أقدر|اقدر|يسعني|أساعد|اساعد|أقدم|اقدم|"
        r"أجيب|اجيب|أقوم|اقوم|أفعل|افعل|أشارك|أدعم|أرغب|أريد|أنوي|"
        r"يجوز لي|يحق لي|يسمح لي|بإمكاني|بوسعي|باستطاعتي|بمقدوري|أوافق|أتمكن|يمكن|من الممكن|في وسعي|أكتب|"
        r"أناقش|يُسمح|مسموح)",
        r"(?:آسف|اسف|أسف|آسفة|عذرا|عذراً|عذرًا|أعتذر|اعتذر|نعتذر|معذرة|للأسف|مع الأسف|يؤسفني|سامحني|المعذرة)",
        r"(?:أرفض|ارفض|أرفُض|مرفوض|أمتنع|امتنع|غير قادر|غير قادرة|غير مسموح|غير ممكن|غير مستعد|غير مخول|"
        r"عاجز|مستحيل|لست قادر|لست مستعد|لست مخول|يتعارض مع|يخالف|مخالف|"
        r"ينتهك|ضد (?:مبادئ|سياس|القانون|إرشاد)|غير قانوني|غير أخلاقي)",
        r"^\W*(?:لا|كلا|أبدا|أبداً|أبدًا|مستحيل|لا شكرا|بالطبع لا)\W*(?:$|[.,!،])|موضوع آخر|شيء آخر|سؤال آخر",
    ),
    "hi": (
        r"(?:मैं|मै|हम|मुझे|मुझसे|मेरे)[^.?!\n]{0,80}(?:नहीं|नही|असमर्थ|इनकार|इन्कार|मना|अस्वीकार|अक्षम|"
        r"असंभव)",
        r"(?:क्षमा|माफ|माफ़|माफ़ी|माफी|खेद|सॉरी|अफसोस|अफ़सोस|दुर्भाग्य)",
        r"(?:नहीं|नही) (?:कर|दे|बता|हो|की|किया|दी|दिया|करूंगा|करूँगा|करूंगी|करूँगी|दूंगा|दूँगा|बताऊंगा|"
        r"बताऊँगा|करता|करती|सकता|सकती|सकते|कर सकता)",
        r"(?:संभव|सम्भव|मुमकिन|उचित|अनुमति|स्वीकार्य|नैतिक|कानूनी) नहीं|असमर्थ|इनकार|इन्कार|अस्वीकार|"
        r"मना कर|के (?:खिलाफ|खिलाफ़|विरुद्ध)|उल्लंघन|गैरकानूनी|अवैध",
        r"^\W*(?:नहीं|नही|बिल्कुल नहीं|कभी नहीं|जी नहीं)\W*(?:$|[.,!])",
    ),
    "vi": (
        r"\b(?:tôi|mình|chúng tôi|em)(?: (?:xin|rất|thật sự|thực sự|cũng|sẽ|đành|buộc phải|phải|e rằng|e là|"
        r"hoàn toàn|tiếc là|lấy làm tiếc|hiện)){0,3} "
        r"(?:không|chẳng|chưa thể|từ chối|phải từ chối|xin lỗi)\b",
        r"\bkhông (?:thể|được phép|có thể|muốn|sẵn lòng|sẵn sàng|hỗ trợ|giúp|cung cấp|trả lời|đồng ý|"
        r"tham gia|phù hợp|có khả năng)\b",
        r"\bxin lỗi\b|\brất tiếc\b|\bthật tiếc\b|\btiếc là\b|\btiếc rằng\b|\bxin phép từ chối\b|"
        r"\btừ chối\b|\bxin thứ lỗi\b",
        r"\b(?:vi phạm|trái với|đi ngược|trái pháp luật|bất hợp pháp|phi đạo đức|nằm ngoài)\b|^\W*(?:không|"
        r"không được|không đời nào|không bao giờ)\W*(?:$|[.,!])|không đời nào|không bao giờ|chủ đề khác|"
        r"câu hỏi khác",
    ),
    "es": (
        r"\bno (?:me |te |le |les |os |lo |la |se |nos )*(?:puedo|podemos|podré|podría|pude|voy a|vamos a|"
        r"quiero|debo|deseo|pienso|es posible|será posible|estoy|tengo permitido|"
        r"tengo permiso|tengo intención|apoyo|proporciono|ofrezco|haré|ayudaré|ayudo|responderé|respondo|"
        r"daré|doy|diré|participaré|participo|está permitido|permite|permiten|"
        r"soy capaz|siento cómod|corresponde|brindo|puede ser|contestaré|hablo|cuentes|cuente|me)\b",
        r"\b(?:lo siento|lo lamento|lamento|lamentablemente|disculpa|disculpe|disculpas|perdón|perdona|"
        r"perdone|desafortunadamente|por desgracia|me temo que|desgraciadamente)\b",
        r"\b(?:me niego|rechazo|debo rechazar|debo negarme|tengo que (?:negarme|rechazar|declinar)|declino|"
        r"prefiero no|me abstengo|rehúso|imposible|ni hablar|de ninguna manera|"
        r"en absoluto|solicitud (?:denegada|rechazada)|va (?:en )?contra|viola|infringe|incumple|"
        r"fuera de mi|soy incapaz|incapaz de|tengo prohibido|prohibido)\b",
        r"\b(?:nunca|jamás) (?:te |le |os |lo |les )*(?:ayud|dar|dir|har|har|particip|respond|contest)|"
        r"^\W*(?:no|nunca|jamás|claro que no|por supuesto que no)\W*(?:$|[.!,])|\b(?:otro tema|otra cosa)\b",
    ),
    "fr": (
        r"\b(?:je|nous|j'|il|cela|ce|ça) ?(?:ne |n')(?:me |te |vous |le |la |les |l'|y |lui |leur |"
        r"m')*(?:peux|pouvons|peut|pourrai|pourrais|vais|veux|souhaite|suis|serai|dois|fais|"
        r"ferai|compte|saurais|sais|donnerai|donne|fournis|fournirai|répondrai|réponds|aiderai|aide|dirai|"
        r"m'|participe|participerai|soutiens|cautionne|est|sera|sommes|ai|autorise)",
        r"\b(?:désolée?|navrée?|regrette|pardon|excuse|excusez|m'excuse|malheureusement|hélas|je crains|"
        r"toutes mes excuses)\b",
        r"\b(?:je (?:refuse|décline|m'abstiens|rejette|m'y refuse|dois (?:refuser|décliner)|préfère ne pas|"
        r"me refuse)|hors de question|impossible|pas question|pas possible|"
        r"contraire (?:à|aux)|va à l'encontre|viole|enfreint|demande (?:refusée|rejetée)|il m'est|"
        r"incapable de|m'est interdit|interdit|pas en mesure|au-delà de mes|pas approprié)",
        r"^\W*(?:non|jamais|certainement pas|bien sûr que non|sûrement pas|absolument pas)\W*(?:$|[.!,])|"
        r"\b(?:autre sujet|autre chose)\b",
    ),
    "de": (
        r"\b(?:ich|wir)\b[^.!?\n]{0,60}\b(?:nicht|kein|keine|keinen|keinerlei|keiner|nichts|niemals|nie|"
        r"ablehnen|verweigere|weigere|ausserstande|unmöglich|lehne|abschlagen)\b",
        r"\b(?:kann|können|werde|werden|möchte|darf|will|dürfen) (?:ich|wir)\b[^.!?\n]{0,60}\b(?:nicht|"
        r"kein|keine|keinen|keinerlei|nie|niemals|ablehnen)\b",
        r"\b(?:tut mir (?:sehr |wirklich )?leid|tut uns leid|entschuldigung|entschuldige|entschuldigen|"
        r"verzeihung|bedaure|bedauere|bedauerlicherweise|leider|sorry)\b",
        r"\b(?:ich lehne|lehne ich|ich verweigere|ich weigere|ausgeschlossen|"
        r"kommt (?:für mich )?nicht in frage|nicht möglich|unmöglich|nicht erlaubt|nicht gestattet|"
        r"untersagt|"
        r"anfrage abgelehnt|abgelehnt|verstösst|widerspricht|geht nicht|nicht angemessen|ausserhalb meiner|"
        r"ohne mich|auf keinen fall|nicht bereit)\b",
        r"^\W*(?:nein|niemals|keinesfalls|natürlich nicht|sicher nicht|nö)\W*(?:$|[.!,])|"
        r"\b(?:anderes thema|etwas anderes)\b",
    ),
    "pt": (
        r"\bnão (?:me |te |lhe |o |a |lhes |vos )*(?:posso|podemos|poderei|poderia|vou|vamos|quero|devo|"
        r"desejo|pretendo|é possível|será possível|estou|tenho permissão|apoio|forneço|"
        r"ofereço|farei|faço|ajudarei|ajudo|responderei|respondo|darei|dou|direi|participarei|participo|"
        r"é permitido|consigo|sou capaz|me sinto|serei|conte|dá|poderá|cabe|é apropriado)\b",
        r"\b(?:desculpe|desculpa|desculpas|sinto muito|lamento|lamentamos|infelizmente|perdão|perdoe|"
        r"peço desculpa|receio que)\b",
        r"\b(?:recuso|me recuso|recuso-me|rejeito|devo recusar|preciso recusar|tenho de recusar|"
        r"tenho que recusar|declino|prefiro não|abstenho|impossível|de jeito nenhum|nem pensar|"
        r"de forma alguma|de maneira nenhuma|pedido (?:negado|recusado|rejeitado)|solicitação negada|"
        r"vai contra|viola|infringe|fora do meu|sou incapaz|incapaz de|proibido|contraria)\b",
        r"\b(?:nunca|jamais) (?:te |lhe |o |a )*(?:ajud|dar|dir|far|particip|respond)|^\W*(?:não|nunca|"
        r"jamais|claro que não)\W*(?:$|[.!,])|\b(?:outro assunto|outra coisa|outro tema)\b",
    ),
    "it": (
        r"\bnon (?:mi |ti |le |vi |lo |la |ci |gli |te |ve )*(?:posso|possiamo|potrò|potrei|voglio|vogliamo|"
        r"intendo|devo|desidero|è possibile|sarà possibile|sono|sarò|ho intenzione|me la sento|"
        r"fornisco|fornirò|farò|faccio|aiuterò|aiuto|risponderò|rispondo|darò|do|dirò|parteciperò|partecipo|"
        r"è consentito|è permesso|riesco|sento|se ne parla|sostengo|è appropriato|"
        r"è il caso|va bene|contare|condivido)\b",
        r"\b(?:mi dispiace|ci dispiace|spiacente|spiacenti|scusa|scusi|scusami|mi scuso|purtroppo|"
        r"mi rincresce|chiedo scusa|sono desolat[oa]|temo (?:di|che)|perdonami)\b",
        r"\b(?:mi rifiuto|rifiuto|devo rifiutare|devo declinare|declino|preferisco non|mi astengo|"
        r"impossibile|in nessun caso|assolutamente no|neanche per sogno|"
        r"richiesta (?:negata|rifiutata|respinta)|va contro|viola|è contrario|contraria|al di fuori|"
        r"sono incapace|vietato|proibito|fuori questione)\b",
        r"^\W*(?:no|mai|certo che no|ovviamente no)\W*(?:$|[.!,])|\b(?:altro argomento|qualcos'altro)\b",
    ),
    "nl": (
        r"\b(?:ik|wij|we)\b[^.!?\n]{0,60}\b(?:niet|geen|niets|nooit|weiger|weigeren|onmogelijk|afwijzen|"
        r"bedank)\b",
        r"\b(?:kan|kunnen|zal|mag|wil) (?:ik|we|wij)\b[^.!?\n]{0,60}\b(?:niet|geen|nooit|weigeren)\b",
        r"\b(?:het spijt (?:me|mij|ons)|sorry|helaas|excuses|neem me niet kwalijk|mijn excuses|"
        r"spijtig genoeg|jammer genoeg)\b",
        r"\b(?:ik weiger|weiger ik|niet mogelijk|onmogelijk|niet toegestaan|geen sprake van|uitgesloten|"
        r"verzoek (?:geweigerd|afgewezen)|in strijd met|tegen mijn|niet gepast|buiten mijn)\b",
        r"^\W*(?:nee|nooit|absoluut niet|zeker niet|natuurlijk niet)\W*(?:$|[.!,])|\b(?:ander onderwerp|"
        r"iets anders)\b",
    ),
    "pl": (
        r"\bnie (?:mogę|możemy|będę|będziemy|chcę|zamierzam|powinienem|powinnam|jestem|udzielę|pomogę|"
        r"odpowiem|zrobię|podam|udzielam|wspieram|podaję|mam zamiar|wolno mi|potrafię|"
        r"dam rady|da się|wezmę|biorę|jest możliwe|jest to możliwe|czuję|powiem|ma mowy|napiszę|umiem|"
        r"godzę|zgadzam|popieram)\b",
        r"\b(?:przykro mi|przepraszam|przepraszamy|niestety|wybacz|proszę o wybaczenie|z przykrością|"
        r"obawiam się|żałuję)\b",
        r"\b(?:odmawiam|muszę odmówić|muszę odrzucić|odrzucam|wolę nie|niemożliwe|wykluczone|"
        r"absolutnie nie|zabronione|prośba odrzucona|narusza|sprzeczne|wbrew|niezgodne|poza moimi)\b",
        r"^\W*(?:nie|nigdy|oczywiście, że nie|w żadnym wypadku)\W*(?:$|[.!,])|\b(?:inny temat|czymś innym|"
        r"inny temat)\b",
    ),
    "id": (
        r"\b(?:saya|kami|aku)(?: \w+){0,3} (?:tidak|tak|menolak|enggan|nggak|gak|takkan|keberatan)\b",
        r"\btidak (?:dapat|bisa|akan|boleh|mau|ingin|mungkin|mampu|bersedia|diizinkan|diperbolehkan|pantas|"
        r"etis|menyediakan|mendukung)\b",
        r"\b(?:maaf|mohon maaf|sayangnya|permintaan maaf|minta maaf)\b",
        r"\b(?:menolak|ditolak|mustahil|bertentangan|melanggar|di luar (?:kemampuan|batas)|dilarang)\b|"
        r"^\W*(?:tidak|jangan|tidak akan)\W*(?:$|[.!,])|\btopik lain\b",
    ),
    "tr": (
        r"\b\w+(?:amam|emem|amayız|emeyiz|mayacağım|meyeceğim|mıyorum|miyorum|muyorum|müyorum|amıyorum|"
        r"emiyorum|mam|mem|amayacağım|emeyeceğim|maktan yanayım|mak istemiyorum)\b",
        r"\b(?:üzgünüm|maalesef|özür dilerim|özür|kusura bakma|kusura bakmayın|ne yazık ki|malesef|"
        r"affedersiniz)\b",
        r"\b(?:reddediyorum|reddetmek|reddedildi|mümkün değil|imkânsız|imkansız|uygun değil|"
        r"izin verilmiyor|aykırı|ihlal|karşı|yasak|değilim|kabul edilemez|olmaz)\b",
        r"^\W*(?:hayır|asla|kesinlikle hayır|tabii ki hayır)\W*(?:$|[.!,])|\bbaşka (?:bir )?konu",
    ),
    "sw": (
        r"\b(?:siwezi|sitaweza|hatuwezi|sitakusaidia|sitatoa|sitajibu|nakataa|ninakataa|"
        r"nalazimika kukataa)\b",
        r"\b(?:samahani|pole|naomba radhi|nasikitika|kwa bahati mbaya)\b",
    ),
    "th": (
        r"ไม่สามารถ|ไม่อาจ|ไม่ขอ|ขอปฏิเสธ|ปฏิเสธ|ช่วยไม่ได้|ให้ไม่ได้|ตอบไม่ได้|ไม่ได้รับอนุญาต|ไม่เหมาะสม",
        r"ขออภัย|ขอโทษ|เสียใจ|น่าเสียดาย",
    ),
    "bn": (
        r"পারব না|পারবো না|পারছি না|পারি না|সম্ভব নয|সম্ভব না|অক্ষম|অস্বীকার|দেব না|করব না",
        r"দুঃখিত|ক্ষমা (?:করবেন|চাই)|মাফ করবেন|দুর্ভাগ্য",
    ),
    "fa": (
        r"نمی ?(?:توانم|توانیم|تونم|کنم|دهم)|نخواهم|قادر نیستم|مجاز نیستم|امکان ?پذیر نیست|رد می ?کنم",
        r"متا?أ?سفم|متاسفانه|متأسفانه|معذرت|ببخشید|پوزش",
    ),
    "he": (
        r"(?:לא|אינני|איני) (?:יכול|יכולה|אוכל|מוכן|מוכנה|רשאי|מסוגל)|אני מסרב|נאלץ לסרב|אסרב",
        r"מצטער|מצטערת|סליחה|לצערי|אני מתנצל",
    ),
    "el": (
        r"\bδεν (?:μπορώ|μπορούμε|θα|είμαι|επιτρέπεται|είναι δυνατόν)\b|\bαρνούμαι\b|\bαδυνατώ\b",
        r"\b(?:λυπάμαι|λυπούμαι|συγγνώμη|δυστυχώς)\b",
    ),
    "sv": (  # and Danish, Norwegian
        r"\b(?:jag|jeg|vi) (?:\w+ ){0,2}(?:kan|vill|vil|får|må|kommer|tänker) (?:\w+ ){0,2}(?:inte|ikke)\b",
        r"\b(?:tyvärr|desværre|dessverre|beklagar|beklager|förlåt|ursäkta|undskyld|unnskyld)\b",
        r"\bkan (?:jag|jeg|vi) (?:\w+ ){0,2}(?:inte|ikke)\b|\b(?:jag vägrar|jeg nekter|jeg nægter)\b",
    ),
    "cs": (  # and Slovak
        r"\b(?:nemohu|nemůžu|nemôžem|nemohl|nesmím|nebudu|nebudem|odmítám|odmietam|nelze|není možné|"
        r"nie je možné)\b",
        r"\b(?:omlouvám se|ospravedlňujem|je mi líto|je mi ľúto|bohužel|bohužiaľ|promiňte|prepáčte|lituji)\b",
    ),
    "ro": (
        r"\bnu (?:\w+ )?(?:pot|putem|voi|vom|vreau|am voie|sunt|este posibil)\b|\brefuz\b",
        r"\b(?:îmi pare rău|ne pare rău|din păcate|scuze|scuzați|regret)\b",
    ),
    "hu": (
        r"\bnem (?:\w+ )?(?:tudok|tudunk|fogok|segíthetek|áll módomban|lehet|adhatok)\b|\belutasítom\b|"
        r"\bnem tehetem\b",
        r"\b(?:sajnálom|sajnos|elnézést|bocsánat|sajnálattal)\b",
    ),
}
